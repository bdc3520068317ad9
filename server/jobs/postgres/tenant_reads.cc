#include "server/jobs/postgres/tenant_calls.h"
#include "server/jobs/rules.h"

namespace quantry::server::postgres {
namespace {

// Text grown from constant pieces, in which every ? becomes $1, $2, ...; what a
// caller sends is only ever bound.
struct SqlBuilder {
  std::string sql;
  std::vector<Value> values;

  template <typename... Args>
  void Add(std::string_view piece, const Args&... args) {
    size_t next = values.size();
    for (char c : piece) {
      if (c == '?') {
        sql += "$" + std::to_string(++next);
      } else {
        sql += c;
      }
    }
    (values.push_back(Arg(args)), ...);
  }
};

SqlBuilder ListSql(const ListQuery& query) {
  SqlBuilder where;
  where.Add("SELECT j.pk, j.create_time, j.uid FROM jobs j WHERE j.tenant = ?", query.tenant);
  if (query.states.size() == 1) {
    where.Add(" AND j.state = ?", static_cast<int>(query.states[0]));
  } else if (!query.states.empty()) {
    where.Add(" AND j.state IN (?", static_cast<int>(query.states[0]));
    for (size_t i = 1; i < query.states.size(); ++i) {
      where.Add(", ?", static_cast<int>(query.states[i]));
    }
    where.Add(")");
  }
  if (!query.method.empty()) where.Add(" AND j.method = ?", query.method);
  for (const auto& [key, value] : query.labels) {
    where.Add(
        " AND EXISTS (SELECT 1 FROM job_labels l"
        " WHERE l.pk = j.pk AND l.key = ? AND l.value = ?)",
        key, value);
  }
  if (query.after) {
    where.Add(" AND (j.create_time, j.uid) < (?, ?)", query.after->create_time, query.after->uid);
  }
  where.Add(" ORDER BY j.create_time DESC, j.uid DESC LIMIT ?", query.limit + 1);
  return where;
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

constexpr const char* kSelectArtifacts =
    "SELECT a.uid, a.tenant, j.id, a.uri, a.manifest_sha256, a.total_bytes, a.file_count,"
    " a.epoch, a.create_time FROM artifacts a JOIN jobs j ON j.pk = a.pk WHERE a.tenant = ?";

}  // namespace

absl::StatusOr<Job> Get(Database& db, const JobKey& key) {
  static const std::string sql = SelectJobs("WHERE j.tenant = $1 AND j.id = $2");
  Rows rows = db.Query(sql, key.tenant, key.id);
  if (!rows.Next()) return JobNotFound(key);
  return JobOf(rows);
}

// The page by its index, then the rest of its few jobs: whatever the planner knows of
// the tables, and no more of them in memory than the page may have.
absl::StatusOr<JobPage> List(Database& db, const ListQuery& query) {
  const SqlBuilder keys = ListSql(query);
  Rows found = db.QueryOnce(
      "SELECT k.pk, k.create_time, k.uid, (SELECT length(p.spec)"
      " FROM job_payloads p WHERE p.pk = k.pk) FROM (" +
          keys.sql + ") k ORDER BY k.create_time DESC, k.uid DESC",
      keys.values);
  JobPage page;
  std::vector<std::string> pks;
  std::optional<Cursor> last;
  auto bytes_left = query.max_spec_bytes;
  while (found.Next()) {
    if (pks.size() == static_cast<size_t>(query.limit) || bytes_left <= 0) {
      page.next = last;
      break;
    }
    pks.push_back(std::to_string(found.Int(0)));
    last = Cursor{found.At(1), found.Text(2)};
    bytes_left -= found.Int(3);
  }
  static const std::string sql =
      SelectJobs("WHERE j.pk = ANY ($1::bigint[]) ORDER BY j.create_time DESC, j.uid DESC");
  Rows rows = db.Query(sql, TextArray(pks));
  while (rows.Next()) page.jobs.push_back(JobOf(rows));
  return page;
}

absl::StatusOr<EventBatch> Events(Database& db, const JobKey& key, int64_t after, int limit) {
  Rows rows = db.Query(
      "SELECT j.state, (SELECT max(seq) FROM job_events e WHERE e.pk = j.pk), e.seq, e.event,"
      " j.uid FROM jobs j LEFT JOIN LATERAL (SELECT seq, event FROM job_events WHERE pk = j.pk"
      " AND seq > $3 ORDER BY seq LIMIT $4) e ON true"
      " WHERE j.tenant = $1 AND j.id = $2 ORDER BY e.seq",
      key.tenant, key.id, after, limit);
  EventBatch batch;
  bool found = false;
  while (rows.Next()) {
    found = true;
    batch.state = static_cast<JobState>(rows.Int(0));
    batch.last_sequence = rows.Int(1);
    batch.uid = rows.Text(4);
    if (rows.IsNull(2)) continue;
    v1::JobEvent& event = batch.events.emplace_back();
    rows.Parse(3, &event);
    event.set_sequence(rows.Int(2));
  }
  if (!found) return JobNotFound(key);
  return batch;
}

absl::StatusOr<Artifact> GetArtifact(Database& db, const std::string& tenant,
                                     const std::string& uid) {
  SqlBuilder select;
  select.Add(kSelectArtifacts, tenant);
  select.Add(" AND a.uid = ?", uid);
  Rows rows = db.QueryOnce(select.sql, select.values);
  if (rows.Next()) return ArtifactOf(rows);
  return ArtifactNotFound(tenant, uid);
}

ArtifactPage ListArtifacts(Database& db, const std::string& tenant, int limit,
                           const std::optional<Cursor>& after) {
  SqlBuilder select;
  select.Add(kSelectArtifacts, tenant);
  if (after) select.Add(" AND (a.create_time, a.uid) < (?, ?)", after->create_time, after->uid);
  select.Add(" ORDER BY a.create_time DESC, a.uid DESC LIMIT ?", limit + 1);
  Rows rows = db.QueryOnce(select.sql, select.values);
  ArtifactPage page;
  while (rows.Next()) page.artifacts.push_back(ArtifactOf(rows));
  if (page.artifacts.size() > static_cast<size_t>(limit)) {
    page.artifacts.pop_back();
    page.next = Cursor{page.artifacts.back().create_time, page.artifacts.back().uid};
  }
  return page;
}

}  // namespace quantry::server::postgres
