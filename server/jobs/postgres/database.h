#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <pqxx/pqxx>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "google/protobuf/message_lite.h"
#include "server/jobs/job.h"
#include "server/jobs/sql_value.h"

// A thin layer over one connection to PostgreSQL; the libpqxx twin of
// sqlite/database.h. Not thread-safe.
//
// Errors are sticky: the first one is kept in status(), and from then on
// queries yield no rows and statements do nothing until ClearError(). Whoever
// opened the transaction looks at status() once at the end, so the operations
// in between read as plain code. A missing row and a failed read look the same
// to them; their answer is then thrown away. No exception of libpqxx gets out.
namespace quantry::server::postgres {

using sql::Arg;
using sql::Blob;
using sql::Value;

// A plain connection of libpqxx that stays broken when it breaks: one that comes
// back by itself would know nothing of the open transaction. Throws.
std::unique_ptr<pqxx::connection> Connect(const std::string& conninfo);

class Database;

// The rows of one query, all of them in memory, read forward.
class Rows {
 public:
  Rows(Database* db, const pqxx::result& result) : db_(db), result_(result) {}

  // To the next row; false at the end and after an error.
  bool Next() { return ++row_ < static_cast<int64_t>(result_.size()); }
  bool IsNull(int column) const { return Field(column).is_null(); }
  // 0 and "" for NULL, as SQLite has it.
  int64_t Int(int column) const;
  std::string Text(int column) const;
  std::string Bytes(int column) const;               // of a bytea
  std::vector<std::string> Texts(int column) const;  // of a text[]
  Time At(int column) const { return FromUnixMicros(Int(column)); }
  std::optional<Time> MaybeAt(int column) const;
  // Bytes that do not parse are an error of the database (corruption).
  void Parse(int column, google::protobuf::MessageLite* message);

 private:
  pqxx::field Field(int column) const;

  Database* db_;
  pqxx::result result_;
  int64_t row_ = -1;
};

// How the last error came about.
enum class Failure {
  kNone,
  kConflict,    // deadlock, serialization, unique key: the same again may work
  kConnection,  // broken: open another one
  kOther,
};

class Database {
 public:
  // At the end of a SELECT: locks its rows, without those locked by another.
  static constexpr const char* kSkipLocked = " FOR UPDATE SKIP LOCKED";
  static constexpr const char* kLeast = "least";
  static constexpr const char* kCountQueued =
      "SELECT sum(n)::bigint FROM (SELECT n FROM job_counts WHERE state = 1"
      " UNION ALL SELECT n FROM job_count_changes WHERE state = 1) counted";

  // Connects and sets timeouts. Errors: UNAVAILABLE STORE_UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& conninfo);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // `sql` is one statement of our own text; values only ever come as
  // arguments $1, $2, .... Prepared once per connection.
  template <typename... Args>
  Rows Query(std::string_view sql, const Args&... args) {
    return Run(sql, std::vector<Value>{Arg(args)...});
  }
  // Not prepared: for text that differs from call to call. Also planned for
  // these very values, so that a LIMIT given as one counts.
  Rows QueryOnce(const std::string& sql, std::span<const Value> values);
  // Returns the number of rows changed, 0 after an error.
  template <typename... Args>
  int64_t Execute(std::string_view sql, const Args&... args) {
    return RunToEnd(sql, std::vector<Value>{Arg(args)...});
  }
  // Several statements without arguments: BEGIN, COMMIT, migrations.
  void Script(const std::string& sql);

  // A COMMIT of what was done so far may reach the disk later: for progress,
  // which a crash may take back. Ends with the transaction.
  void CommitMayBeLate() { late_ = true; }
  bool TakeLate() { return std::exchange(late_, false); }

  // Jobs changed beside the one a call names; see ChangeObserver.
  void NoteChanged(JobKey job) { changed_.push_back(std::move(job)); }
  std::vector<JobKey> TakeChanged() { return std::exchange(changed_, {}); }

  const absl::Status& status() const { return status_; }
  Failure failure() const { return failure_; }
  bool IsOpen() const { return connection_->is_open(); }
  void ClearError();
  // Keeps the first error.
  void SetError(absl::Status status, Failure failure = Failure::kOther);

 private:
  Database(std::unique_ptr<pqxx::connection> connection, std::string where);

  Rows Run(std::string_view sql, std::span<const Value> values);
  int64_t RunToEnd(std::string_view sql, std::span<const Value> values);
  pqxx::result Send(std::string_view sql, std::span<const Value> values);
  // False, and an error is set, when they cannot be sent.
  bool CheckValues(std::span<const Value> values);
  const std::string& NameOf(std::string_view sql);
  // Runs `call`; what it throws becomes the sticky error.
  template <typename Call>
  auto Guard(const Call& call) -> decltype(call());

  std::unique_ptr<pqxx::connection> connection_;
  std::unique_ptr<pqxx::nontransaction> session_;
  const std::string where_;
  absl::Status status_;
  Failure failure_ = Failure::kNone;
  bool late_ = false;
  std::vector<JobKey> changed_;
  std::unordered_map<std::string, std::string> statements_;  // text -> name
};

}  // namespace quantry::server::postgres
