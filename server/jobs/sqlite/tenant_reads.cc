#include <algorithm>

#include "server/jobs/rules.h"
#include "server/jobs/sqlite/rows.h"
#include "server/jobs/sqlite/tenant_calls.h"

namespace quantry::server::sqlite {
namespace {

// A SELECT grown from constant pieces; what a caller sends is only ever bound.
struct SelectBuilder {
  std::string sql;
  std::vector<Value> values;

  template <typename... Args>
  void Add(std::string_view piece, const Args&... args) {
    sql += piece;
    (values.push_back(Arg(args)), ...);
  }
};

SelectBuilder ListSql(const ListQuery& query) {
  SelectBuilder select;
  select.Add("SELECT pk FROM jobs WHERE tenant = ?", query.tenant);
  if (query.states.size() == 1) {
    select.Add(" AND state = ?", static_cast<int>(query.states[0]));
  } else if (!query.states.empty()) {
    select.Add(" AND state IN (?", static_cast<int>(query.states[0]));
    for (size_t i = 1; i < query.states.size(); ++i) {
      select.Add(", ?", static_cast<int>(query.states[i]));
    }
    select.Add(")");
  }
  if (!query.method.empty()) select.Add(" AND method = ?", query.method);
  for (const auto& [key, value] : query.labels) {
    select.Add(
        " AND EXISTS (SELECT 1 FROM job_labels l"
        " WHERE l.pk = jobs.pk AND l.key = ? AND l.value = ?)",
        key, value);
  }
  if (query.after) {
    select.Add(" AND (create_time, uid) < (?, ?)", query.after->create_time, query.after->uid);
  }
  select.Add(" ORDER BY create_time DESC, uid DESC LIMIT ?", query.limit + 1);
  return select;
}

Artifact ArtifactOf(const Rows& rows) {
  Artifact artifact;
  artifact.uid = rows.Text(0);
  artifact.job = {rows.Text(1), rows.Text(2)};
  artifact.uri = rows.Text(3);
  artifact.manifest_sha256 = rows.Text(4);
  artifact.total_bytes = rows.Int(5);
  artifact.file_count = static_cast<int>(rows.Int(6));
  artifact.epoch = rows.Int(7);
  artifact.create_time = rows.At(8);
  return artifact;
}

#define QUANTRY_SELECT_ARTIFACT                                                          \
  "SELECT a.uid, a.tenant, j.id, a.uri, a.manifest_sha256, a.total_bytes, a.file_count," \
  " a.epoch, a.create_time FROM artifacts a JOIN jobs j USING (pk) WHERE a.tenant = ?"

}  // namespace

absl::StatusOr<Job> Get(Database& db, const JobKey& key) {
  std::optional<int64_t> pk = FindJob(db, key);
  if (!pk) return JobNotFound(key);
  return ReadJob(db, *pk);
}

absl::StatusOr<JobPage> List(Database& db, const ListQuery& query) {
  SelectBuilder select = ListSql(query);
  std::vector<int64_t> found;
  {
    Rows rows = db.QueryWith(select.sql, select.values);
    while (rows.Next()) found.push_back(rows.Int(0));
  }
  JobPage page;
  const size_t limit = std::min(found.size(), static_cast<size_t>(query.limit));
  auto bytes_left = query.max_spec_bytes;
  while (page.jobs.size() < limit && bytes_left > 0) {
    page.jobs.push_back(ReadJob(db, found[page.jobs.size()]));
    bytes_left -= static_cast<int64_t>(page.jobs.back().spec.ByteSizeLong());
  }
  if (found.size() > page.jobs.size() && !page.jobs.empty()) {
    page.next = Cursor{page.jobs.back().create_time, page.jobs.back().uid};
  }
  return page;
}

absl::StatusOr<EventBatch> Events(Database& db, const JobKey& key, int64_t after, int limit) {
  std::optional<int64_t> pk = FindJob(db, key);
  if (!pk) return JobNotFound(key);
  EventBatch batch;
  {
    Rows rows = db.Query(
        "SELECT state, (SELECT max(seq) FROM job_events e WHERE e.pk = jobs.pk), uid"
        " FROM jobs WHERE pk = ?",
        *pk);
    if (rows.Next()) {
      batch.state = static_cast<JobState>(rows.Int(0));
      batch.last_sequence = rows.Int(1);
      batch.uid = rows.Text(2);
    }
  }
  Rows rows = db.Query("SELECT event FROM job_events WHERE pk = ? AND seq > ? ORDER BY seq LIMIT ?",
                       *pk, after, limit);
  while (rows.Next()) rows.Parse(0, &batch.events.emplace_back());
  return batch;
}

absl::StatusOr<Artifact> GetArtifact(Database& db, const std::string& tenant,
                                     const std::string& uid) {
  Rows rows = db.Query(QUANTRY_SELECT_ARTIFACT " AND a.uid = ?", tenant, uid);
  if (rows.Next()) return ArtifactOf(rows);
  return ArtifactNotFound(tenant, uid);
}

ArtifactPage ListArtifacts(Database& db, const std::string& tenant, int limit,
                           const std::optional<Cursor>& after) {
  SelectBuilder select;
  select.Add(QUANTRY_SELECT_ARTIFACT, tenant);
  if (after) select.Add(" AND (a.create_time, a.uid) < (?, ?)", after->create_time, after->uid);
  select.Add(" ORDER BY a.create_time DESC, a.uid DESC LIMIT ?", limit + 1);
  Rows rows = db.QueryWith(select.sql, select.values);
  ArtifactPage page;
  while (rows.Next()) page.artifacts.push_back(ArtifactOf(rows));
  if (page.artifacts.size() > static_cast<size_t>(limit)) {
    page.artifacts.pop_back();
    page.next = Cursor{page.artifacts.back().create_time, page.artifacts.back().uid};
  }
  return page;
}

}  // namespace quantry::server::sqlite
