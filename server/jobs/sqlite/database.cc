#include "server/jobs/sqlite/database.h"

#include <sqlite3.h>

#include <cstdlib>
#include <utility>

#include "common/errors.h"

namespace quantry::server::sqlite {
namespace {

constexpr int kBusyTimeoutMs = 5000;
// The writer checkpoints by itself at 16384 pages of 4 KiB: a log of 64 MiB. Larger, and a
// restart after a crash reads it for longer; see Checkpointer.
constexpr const char* kSetup =
    "PRAGMA journal_mode=WAL;"
    "PRAGMA wal_autocheckpoint=16384;"
    "PRAGMA synchronous=FULL;"
    "PRAGMA foreign_keys=ON;"
    "PRAGMA journal_size_limit=67108864;"
    "PRAGMA cache_size=-65536;"
    "PRAGMA temp_store=MEMORY;";

absl::Status MapError(int code, const std::string& path, const std::string& text) {
  std::map<std::string, std::string> metadata = {
      {"path", path}, {"error", text}, {"sqlite_code", std::to_string(code)}};
  if ((code & 0xFF) == SQLITE_FULL) {
    return MakeError(
        Reason::kDiskFull,
        "no space left for the database " + path + " (" + text + "); free space, then retry",
        metadata);
  }
  return MakeError(Reason::kStoreUnavailable,
                   "the database " + path + " answered: " + text + "; retry", metadata);
}

int BindValue(sqlite3_stmt* statement, int index, const Value& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) {
    return sqlite3_bind_int64(statement, index, *number);
  }
  if (const auto* text = std::get_if<std::string>(&value)) {
    return sqlite3_bind_text64(statement, index, text->data(), text->size(), SQLITE_TRANSIENT,
                               SQLITE_UTF8);
  }
  if (const auto* blob = std::get_if<Blob>(&value)) {
    return sqlite3_bind_blob64(statement, index, blob->bytes.data(), blob->bytes.size(),
                               SQLITE_TRANSIENT);
  }
  return sqlite3_bind_null(statement, index);
}

// Which value the placeholder at `index` gets. $3, as SQL shared with PostgreSQL
// has it, is the third, wherever it comes first in the text.
size_t PositionOf(sqlite3_stmt* statement, int index) {
  const char* name = sqlite3_bind_parameter_name(statement, index);
  const bool dollar = name != nullptr && *name == '$';
  return (dollar ? std::strtoul(name + 1, nullptr, 10) : static_cast<size_t>(index)) - 1;
}

}  // namespace

Rows::~Rows() {
  if (statement_ != nullptr) sqlite3_reset(statement_);
}

bool Rows::Next() {
  if (statement_ == nullptr || !db_->status().ok()) return false;
  int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) db_->Fail(code);
  return false;
}

bool Rows::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

int64_t Rows::Int(int column) const { return sqlite3_column_int64(statement_, column); }

std::string Rows::Text(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  auto size = static_cast<size_t>(sqlite3_column_bytes(statement_, column));
  return data == nullptr ? "" : std::string(static_cast<const char*>(data), size);
}

std::optional<Time> Rows::MaybeAt(int column) const {
  if (IsNull(column)) return std::nullopt;
  return At(column);
}

void Rows::Parse(int column, google::protobuf::MessageLite* message) {
  message->Clear();
  if (IsNull(column) || message->ParseFromString(Text(column))) return;
  db_->SetError(MakeError(Reason::kInternal, "a stored " + message->GetTypeName() +
                                                 " does not parse: the database is damaged"));
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, bool query_only) {
  sqlite3* handle = nullptr;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  int code = sqlite3_open_v2(path.c_str(), &handle, flags, nullptr);
  if (code != SQLITE_OK) {
    absl::Status status = MapError(code, path, sqlite3_errstr(code));
    sqlite3_close_v2(handle);
    return status;
  }
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, kBusyTimeoutMs);
  std::unique_ptr<Database> db(new Database(handle, path));
  db->Script(kSetup);
  if (query_only) db->Script("PRAGMA query_only=ON;");
  if (!db->status().ok()) return db->status();
  return db;
}

Database::~Database() {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close_v2(handle_);
}

void Database::Script(const std::string& sql) {
  if (!status_.ok()) return;
  int code = sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr);
  if (code != SQLITE_OK) Fail(code);
}

sqlite3_stmt* Database::Prepare(std::string_view sql) {
  auto found = statements_.find(std::string(sql));
  if (found != statements_.end()) return found->second;
  sqlite3_stmt* statement = nullptr;
  int code = sqlite3_prepare_v3(handle_, sql.data(), static_cast<int>(sql.size()),
                                SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
  if (code != SQLITE_OK) {
    Fail(code);
    return nullptr;
  }
  statements_.emplace(sql, statement);
  return statement;
}

sqlite3_stmt* Database::Bind(std::string_view sql, std::span<const Value> values) {
  if (!status_.ok()) return nullptr;
  sqlite3_stmt* statement = Prepare(sql);
  if (statement == nullptr) return nullptr;
  if (sqlite3_stmt_busy(statement) != 0 ||
      sqlite3_bind_parameter_count(statement) != static_cast<int>(values.size())) {
    SetError(MakeError(Reason::kInternal, "a statement is nested in itself or got " +
                                              std::to_string(values.size()) +
                                              " values: " + std::string(sql)));
    return nullptr;
  }
  for (int index = 1; index <= static_cast<int>(values.size()); ++index) {
    const size_t position = PositionOf(statement, index);
    int code =
        position < values.size() ? BindValue(statement, index, values[position]) : SQLITE_RANGE;
    if (code != SQLITE_OK) {
      Fail(code);
      return nullptr;
    }
  }
  return statement;
}

int64_t Database::RunToEnd(std::string_view sql, std::initializer_list<Value> values) {
  Rows rows(this, Bind(sql, {values.begin(), values.size()}));
  while (rows.Next()) {
  }
  return status_.ok() ? sqlite3_changes64(handle_) : 0;
}

int64_t Database::LastInsertId() const { return sqlite3_last_insert_rowid(handle_); }

bool Database::InTransaction() const { return sqlite3_get_autocommit(handle_) == 0; }

void Database::SetError(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
}

void Database::Fail(int code) { SetError(MapError(code, path_, sqlite3_errmsg(handle_))); }

}  // namespace quantry::server::sqlite
