#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "google/protobuf/message_lite.h"
#include "server/jobs/job.h"
#include "server/jobs/sql_value.h"

struct sqlite3;
struct sqlite3_stmt;

// A thin layer over one SQLite connection. Not thread-safe.
//
// Errors are sticky: the first one is kept in status(), and from then on
// queries yield no rows and statements do nothing until ClearError(). Whoever
// opened the transaction looks at status() once at the end and rolls back, so
// the operations in between read as plain code. A missing row and a failed
// read look the same to them; their answer is then thrown away.
namespace quantry::server::sqlite {

using sql::Arg;
using sql::Blob;
using sql::Value;

class Database;

// The rows of one query, forward only. Resets its statement when destroyed.
class Rows {
 public:
  Rows(Database* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
  ~Rows();
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  // To the next row; false at the end and after an error.
  bool Next();
  bool IsNull(int column) const;
  int64_t Int(int column) const;
  std::string Text(int column) const;  // also for blobs
  Time At(int column) const { return FromUnixMicros(Int(column)); }
  std::optional<Time> MaybeAt(int column) const;
  // Bytes that do not parse are an error of the database (corruption).
  void Parse(int column, google::protobuf::MessageLite* message);

 private:
  Database* db_;
  sqlite3_stmt* statement_;  // null after an error
};

class Database {
 public:
  // A writer is the only one: no row is locked by another.
  static constexpr const char* kSkipLocked = "";
  static constexpr const char* kLeast = "min";
  static constexpr const char* kCountQueued = "SELECT n FROM job_counts WHERE state = 1";

  // Creates the file when absent, sets WAL, synchronous=FULL, foreign keys
  // and the busy timeout. `query_only` connections cannot write.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, bool query_only);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  // `sql` is one statement of our own text; values only ever come as
  // arguments. Prepared once per connection.
  template <typename... Args>
  Rows Query(std::string_view sql, const Args&... args) {
    return Start(sql, {Arg(args)...});
  }
  Rows QueryWith(std::string_view sql, std::span<const Value> values) {
    return Rows(this, Bind(sql, values));
  }
  // Runs to the end; returns the number of rows changed, 0 after an error.
  template <typename... Args>
  int64_t Execute(std::string_view sql, const Args&... args) {
    return RunToEnd(sql, {Arg(args)...});
  }
  // Several statements without arguments: migrations.
  void Script(const std::string& sql);

  int64_t LastInsertId() const;
  // SQLite rolls a transaction back by itself after some errors.
  bool InTransaction() const;

  // Jobs changed beside the one a call names; see ChangeObserver.
  void NoteChanged(JobKey job) { changed_.push_back(std::move(job)); }
  std::vector<JobKey> TakeChanged() { return std::exchange(changed_, {}); }

  const absl::Status& status() const { return status_; }
  void ClearError() { status_ = absl::OkStatus(); }
  // Keeps the first error.
  void SetError(absl::Status status);

 private:
  friend class Rows;
  Database(sqlite3* handle, std::string path) : handle_(handle), path_(std::move(path)) {}

  Rows Start(std::string_view sql, std::initializer_list<Value> values) {
    return Rows(this, Bind(sql, {values.begin(), values.size()}));
  }
  int64_t RunToEnd(std::string_view sql, std::initializer_list<Value> values);
  sqlite3_stmt* Prepare(std::string_view sql);
  sqlite3_stmt* Bind(std::string_view sql, std::span<const Value> values);
  void Fail(int code);

  sqlite3* handle_;
  std::string path_;
  absl::Status status_;
  std::vector<JobKey> changed_;
  std::unordered_map<std::string, sqlite3_stmt*> statements_;
};

}  // namespace quantry::server::sqlite
