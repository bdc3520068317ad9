#include "server/jobs/sqlite/connections.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <latch>

#include "common/errors.h"

namespace quantry::server::sqlite {
namespace {

class ConnectionsTest : public testing::Test {
 protected:
  ConnectionsTest() {
    std::string path = std::filesystem::temp_directory_path() / "quantry_sqlite_XXXXXX";
    dir_ = mkdtemp(path.data());
  }
  ~ConnectionsTest() override { std::filesystem::remove_all(dir_); }

  std::unique_ptr<Database> Open(bool query_only = false) {
    auto db = Database::Open(dir_ + "/test.db", query_only);
    EXPECT_TRUE(db.ok()) << db.status();
    return *std::move(db);
  }
  std::unique_ptr<Database> OpenWithTable() {
    auto db = Open();
    db->Script("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT NOT NULL CHECK (text <> 'bad'))");
    EXPECT_TRUE(db->status().ok());
    return db;
  }
  static Operation Insert(int id, const std::string& text) {
    return [=](Database& db) {
      db.Execute("INSERT INTO t VALUES (?, ?)", id, text);
      return absl::OkStatus();
    };
  }
  // "1:a 2:b"
  std::string Content() {
    auto db = Open(true);
    std::string content;
    Rows rows = db->Query("SELECT id, text FROM t ORDER BY id");
    while (rows.Next()) content += std::to_string(rows.Int(0)) + ":" + rows.Text(1) + " ";
    return content;
  }

  std::string dir_;
};

TEST_F(ConnectionsTest, ErrorsStickUntilCleared) {
  auto db = OpenWithTable();
  db->Execute("INSERT INTO t VALUES (1, 'bad')");
  EXPECT_TRUE(HasReason(db->status(), Reason::kStoreUnavailable)) << db->status();
  EXPECT_EQ(db->Execute("INSERT INTO t VALUES (2, 'fine')"), 0);
  EXPECT_FALSE(db->Query("SELECT 1").Next());
  db->ClearError();
  EXPECT_EQ(db->Execute("INSERT INTO t VALUES (2, 'fine')"), 1);
  EXPECT_EQ(Content(), "2:fine ");
}

TEST_F(ConnectionsTest, MisuseIsAnErrorNotACrash) {
  auto db = OpenWithTable();
  db->Execute("SELECT no_such_column FROM t");
  EXPECT_FALSE(db->status().ok());
  db->ClearError();
  db->Execute("INSERT INTO t VALUES (?, ?)", 1);
  EXPECT_TRUE(HasReason(db->status(), Reason::kInternal)) << db->status();
}

TEST_F(ConnectionsTest, ValuesAreBoundNotSpliced) {
  auto db = OpenWithTable();
  std::string nasty("'); DROP TABLE t; --\0x", 22);
  db->Execute("INSERT INTO t VALUES (?, ?)", 1, nasty);
  Rows rows = db->Query("SELECT text FROM t WHERE text = ?", nasty);
  ASSERT_TRUE(rows.Next());
  EXPECT_EQ(rows.Text(0), nasty);
}

TEST_F(ConnectionsTest, ReadersCannotWrite) {
  OpenWithTable();
  std::vector<std::unique_ptr<Database>> connections;
  connections.push_back(Open(true));
  ReaderPool readers(std::move(connections));
  EXPECT_FALSE(readers.Run(Insert(1, "a")).ok());
  EXPECT_EQ(Content(), "");
}

TEST_F(ConnectionsTest, AFailedOperationIsUndoneAlone) {
  GroupCommitWriter writer(OpenWithTable());
  // The first operation holds the writer until all others are queued, so that
  // they share one transaction.
  std::latch queued(1);
  std::vector<std::thread> threads;
  std::vector<absl::Status> results(6);
  std::atomic<int> started{0};
  auto run = [&](size_t i, Operation operation) {
    threads.emplace_back([&, i, operation = std::move(operation)] {
      ++started;
      results[i] = writer.Run(operation);
    });
  };
  run(0, [&](Database&) {
    queued.wait();
    return absl::OkStatus();
  });
  run(1, Insert(1, "a"));
  run(2, [](Database& db) {
    db.Execute("INSERT INTO t VALUES (2, 'undone')");
    return absl::AbortedError("on purpose");
  });
  run(3, [](Database& db) {
    db.Execute("INSERT INTO t VALUES (3, 'undone')");
    db.Execute("INSERT INTO t VALUES (4, 'bad')");
    return absl::OkStatus();  // the database's error counts
  });
  run(4, Insert(5, "b"));
  run(5, Insert(6, "c"));
  while (started < 6) std::this_thread::yield();
  queued.count_down();
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(results[1].ok() && results[4].ok() && results[5].ok());
  EXPECT_TRUE(absl::IsAborted(results[2]));
  EXPECT_TRUE(HasReason(results[3], Reason::kStoreUnavailable));
  EXPECT_EQ(Content(), "1:a 5:b 6:c ");
}

TEST_F(ConnectionsTest, ATransactionThatIsLostFailsEveryoneInIt) {
  GroupCommitWriter writer(OpenWithTable());
  absl::Status lost = writer.Run([](Database& db) {
    db.Execute("INSERT INTO t VALUES (1, 'undone')");
    db.Execute("INSERT OR ROLLBACK INTO t VALUES (2, 'bad')");  // SQLite undoes it all
    return absl::OkStatus();
  });
  EXPECT_TRUE(HasReason(lost, Reason::kStoreUnavailable)) << lost;
  EXPECT_EQ(Content(), "");
  EXPECT_TRUE(writer.Run(Insert(3, "after")).ok());
  EXPECT_EQ(Content(), "3:after ");
}

TEST_F(ConnectionsTest, QueuedOperationsFinishBeforeTheWriterEnds) {
  std::vector<std::thread> threads;
  {
    GroupCommitWriter writer(OpenWithTable());
    for (int i = 0; i < 50; ++i) {
      threads.emplace_back([&, i] { EXPECT_TRUE(writer.Run(Insert(i, "x")).ok()); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(Open()->Execute("UPDATE t SET text = 'y'"), 50);
}

}  // namespace
}  // namespace quantry::server::sqlite
