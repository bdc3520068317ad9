#include "server/jobs/postgres/database.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "common/errors.h"
#include "server/jobs/postgres/conninfo.h"

namespace quantry::server::postgres {
namespace {

// A statement that runs longer is stuck; a session that holds a transaction
// open this long is a bug or a frozen server, and would stop vacuum. No
// compiled plans (jit): that takes longer than any statement here runs.
constexpr const char* kSetup =
    "SET statement_timeout = '10s'; SET lock_timeout = '8s';"
    " SET idle_in_transaction_session_timeout = '15s'; SET client_encoding = 'UTF8'; SET jit = off;"
    " SET bytea_output = 'hex'; SET synchronous_commit = on; SET default_transaction_isolation ="
    " 'read committed'";

bool IsIn(std::string_view code, std::initializer_list<std::string_view> codes) {
  return std::find(codes.begin(), codes.end(), code) != codes.end();
}

// SQLSTATE, appendix A of PostgreSQL's manual.
Failure FailureOf(const std::string& code) {
  if (code.starts_with("08") || code.starts_with("57P")) return Failure::kConnection;
  if (IsIn(code, {"40001", "40P01", "23505"})) return Failure::kConflict;
  return Failure::kOther;
}

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

absl::Status MapSqlError(const std::string& code, const std::string& text,
                         const std::string& where) {
  const std::map<std::string, std::string> metadata = {
      {"store", where}, {"error", text}, {"sqlstate", code}};
  if (code == "53100") {
    return MakeError(Reason::kDiskFull,
                     where + " has no space left (" + text + "); free space, then retry", metadata);
  }
  return MakeError(Reason::kStoreUnavailable, where + " answered: " + text + "; retry", metadata);
}

// FATAL is the server's own word: it is there.
absl::Status Unreachable(const std::string& text, const std::string& where) {
  const bool answered = text.find("FATAL:") != std::string::npos;
  return MakeError(
      Reason::kStoreUnavailable,
      where + (answered ? " takes no connection (" : " cannot be reached (") + text +
          (answered ? "); look at user, password, database and max_connections, or retry"
                    : "); is it running? Retry"),
      {{"store", where}, {"error", text}});
}

std::string Hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex = "\\x";
  hex.reserve(2 + 2 * bytes.size());
  for (unsigned char c : bytes) {
    hex += kDigits[c >> 4];
    hex += kDigits[c & 15];
  }
  return hex;
}

int Digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

// nullopt = NULL.
std::optional<std::string> TextOf(const Value& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* blob = std::get_if<Blob>(&value)) return Hex(blob->bytes);
  return std::nullopt;
}

// Values as libpq takes them: texts, null pointers for NULL.
struct Parameters {
  explicit Parameters(std::span<const Value> values) {
    texts.reserve(values.size());
    for (const Value& value : values) texts.push_back(TextOf(value));
    for (const auto& text : texts) pointers.push_back(text ? text->c_str() : nullptr);
  }
  std::vector<std::optional<std::string>> texts;
  std::vector<const char*> pointers;
};

}  // namespace

std::unique_ptr<pqxx::connection> Connect(const std::string& conninfo) {
  auto connection = std::make_unique<pqxx::connection>(conninfo);
  // libpqxx 7 never reconnects and so has no such call.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  connection->inhibit_reactivation(true);
#pragma GCC diagnostic pop
  return connection;
}

pqxx::field Rows::Field(int column) const {
  return result_[static_cast<pqxx::result::size_type>(row_)][column];
}

int64_t Rows::Int(int column) const {
  const pqxx::field field = Field(column);
  int64_t value = 0;
  std::from_chars(field.c_str(), field.c_str() + field.size(), value);
  return value;
}

std::string Rows::Text(int column) const {
  const pqxx::field field = Field(column);
  return {field.c_str(), field.size()};
}

std::string Rows::Bytes(int column) const {
  const pqxx::field field = Field(column);
  std::string_view hex(field.c_str(), field.size());
  if (!hex.starts_with("\\x")) return "";
  std::string bytes;
  bytes.reserve(hex.size() / 2);
  for (size_t i = 2; i + 1 < hex.size(); i += 2) {
    bytes += static_cast<char>(Digit(hex[i]) << 4 | Digit(hex[i + 1]));
  }
  return bytes;
}

std::vector<std::string> Rows::Texts(int column) const {
  std::vector<std::string> texts;
  if (IsNull(column)) return texts;
  pqxx::array_parser parser = Field(column).as_array();
  for (auto item = parser.get_next(); item.first != pqxx::array_parser::done;
       item = parser.get_next()) {
    if (item.first == pqxx::array_parser::string_value) texts.push_back(item.second);
  }
  return texts;
}

std::optional<Time> Rows::MaybeAt(int column) const {
  if (IsNull(column)) return std::nullopt;
  return At(column);
}

void Rows::Parse(int column, google::protobuf::MessageLite* message) {
  message->Clear();
  if (IsNull(column) || message->ParseFromString(Bytes(column))) return;
  db_->SetError(MakeError(Reason::kInternal, "a stored " + message->GetTypeName() +
                                                 " does not parse: the database is damaged"));
}

Database::Database(std::unique_ptr<pqxx::connection> connection, std::string where)
    : connection_(std::move(connection)),
      session_(std::make_unique<pqxx::nontransaction>(*connection_)),
      where_(std::move(where)) {}

Database::~Database() = default;

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& conninfo) {
  const std::string where = Describe(conninfo);
  std::unique_ptr<Database> db;
  try {
    db.reset(new Database(Connect(conninfo), where));
  } catch (const std::exception& error) {
    return Unreachable(FirstLine(error.what()), where);
  }
  db->Script(kSetup);
  if (!db->status().ok()) return db->status();
  return db;
}

template <typename Call>
auto Database::Guard(const Call& call) -> decltype(call()) {
  try {
    return call();
  } catch (const pqxx::sql_error& error) {
    const Failure failure = IsOpen() ? FailureOf(error.sqlstate()) : Failure::kConnection;
    SetError(MapSqlError(error.sqlstate(), FirstLine(error.what()), where_), failure);
  } catch (const std::exception& error) {
    const bool open = IsOpen();
    SetError(Unreachable(FirstLine(error.what()), where_),
             open ? Failure::kOther : Failure::kConnection);
  }
  return {};
}

pqxx::result Database::Send(std::string_view sql, std::span<const Value> values) {
  const Parameters parameters(values);
  return session_->exec_prepared(NameOf(sql),
                                 pqxx::prepare::make_dynamic_params(parameters.pointers));
}

bool Database::CheckValues(std::span<const Value> values) {
  if (!status_.ok()) return false;
  for (const Value& value : values) {
    const auto* text = std::get_if<std::string>(&value);
    if (text == nullptr || text->find('\0') == std::string::npos) continue;
    SetError(MakeError(Reason::kInvalidArgument, "a text holds a NUL byte, which cannot be kept"));
    return false;
  }
  return true;
}

Rows Database::Run(std::string_view sql, std::span<const Value> values) {
  if (!CheckValues(values)) return Rows(this, {});
  return Rows(this, Guard([&] { return Send(sql, values); }));
}

Rows Database::QueryOnce(const std::string& sql, std::span<const Value> values) {
  if (!CheckValues(values)) return Rows(this, {});
  const Parameters parameters(values);
  return Rows(this, Guard([&] {
                return session_->exec_params(
                    sql, pqxx::prepare::make_dynamic_params(parameters.pointers));
              }));
}

int64_t Database::RunToEnd(std::string_view sql, std::span<const Value> values) {
  if (!CheckValues(values)) return 0;
  pqxx::result result = Guard([&] { return Send(sql, values); });
  return status_.ok() ? static_cast<int64_t>(result.affected_rows()) : 0;
}

void Database::Script(const std::string& sql) {
  if (!status_.ok()) return;
  Guard([&] { return session_->exec(sql); });
}

const std::string& Database::NameOf(std::string_view sql) {
  auto found = statements_.find(std::string(sql));
  if (found != statements_.end()) return found->second;
  std::string name = "q" + std::to_string(statements_.size());
  connection_->prepare(name, std::string(sql));
  return statements_.emplace(sql, std::move(name)).first->second;
}

void Database::ClearError() {
  status_ = absl::OkStatus();
  failure_ = Failure::kNone;
}

void Database::SetError(absl::Status status, Failure failure) {
  if (!status_.ok()) return;
  status_ = std::move(status);
  failure_ = failure;
}

}  // namespace quantry::server::postgres
