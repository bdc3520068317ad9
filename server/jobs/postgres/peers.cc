#include "server/jobs/postgres/peers.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "common/errors.h"
#include "server/jobs/postgres/conninfo.h"
#include "server/jobs/postgres/database.h"

namespace quantry::server::postgres {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr auto kBetweenSends = milliseconds(50);
constexpr auto kBetweenClockReadings = std::chrono::seconds(5);
constexpr auto kReconnect = milliseconds(500);
// A reading that took longer says little about when it was taken, but that the clock stepped.
constexpr auto kGoodReading = milliseconds(50);
constexpr size_t kMaxJobsNamed = 1000;
constexpr size_t kMaxPayloadBytes = 7000;  // PostgreSQL's limit is 8000
constexpr const char* kEverything = "*";

// A payload is lines: "tenant/id", or "" for work; or just "*".
std::vector<std::string> PayloadsOf(const std::set<JobKey>& jobs, bool work) {
  std::vector<std::string> payloads;
  if (work) payloads.emplace_back("\n");
  for (const JobKey& job : jobs) {
    const std::string line = job.tenant + "/" + job.id + "\n";
    if (payloads.empty() || payloads.back().size() + line.size() > kMaxPayloadBytes) {
      payloads.emplace_back();
    }
    payloads.back() += line;
  }
  return payloads;
}

void Signal(int fd) {
  const uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(fd, &one, sizeof(one));
}

void Drain(int fd) {
  uint64_t count = 0;
  [[maybe_unused]] ssize_t got = read(fd, &count, sizeof(count));
}

// Hands what other servers send on the channel to a function.
class Receiver : public pqxx::notification_receiver {
 public:
  using Handler = std::function<void(const std::string& payload)>;
  Receiver(pqxx::connection& connection, const std::string& channel, Handler handler)
      : notification_receiver(connection, channel), handler_(std::move(handler)) {}
  void operator()(const std::string& payload, int backend) override {
    if (backend != conn().backendpid()) handler_(payload);
  }

 private:
  Handler handler_;
};

// Schemas of one database do not hear each other.
std::string ChannelOf(pqxx::connection& connection) {
  pqxx::nontransaction session(connection);
  return session.exec1("SELECT 'quantry_' || current_schema()")[0].c_str();
}

}  // namespace

Peers::Peers(Options options, UniqueFd wake)
    : options_(std::move(options)), wake_(std::move(wake)) {}

absl::StatusOr<std::unique_ptr<Peers>> Peers::Join(Options options) {
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.ok()) return MakeError(Reason::kInternal, "the system gave no eventfd");
  const std::string where = Describe(options.conninfo);
  std::unique_ptr<Peers> peers(new Peers(std::move(options), std::move(wake)));
  try {
    peers->ReadClock(*Connect(peers->options_.conninfo), /*first=*/true);
  } catch (const std::exception& error) {
    return MakeError(Reason::kStoreUnavailable,
                     where + " cannot be reached (" + error.what() + "); is it running? Retry",
                     {{"store", where}, {"error", error.what()}});
  }
  peers->thread_ = std::jthread([p = peers.get()](const std::stop_token& stop) { p->Run(stop); });
  return peers;
}

Peers::~Peers() {
  thread_.request_stop();
  Signal(wake_.get());
}

void Peers::Tell(const JobKey* job) {
  {
    std::lock_guard lock(mutex_);
    if (job == nullptr) {
      outbox_.work = true;
    } else if (outbox_.jobs.size() < kMaxJobsNamed) {
      outbox_.jobs.insert(*job);
    } else {
      outbox_.everything = true;
    }
  }
  Signal(wake_.get());
}

bool Peers::HasOutbox() {
  std::lock_guard lock(mutex_);
  return !outbox_.empty();
}

void Peers::Run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    try {
      Serve(stop, *Connect(options_.conninfo));
    } catch (const std::exception&) {
      // Refused or broken; the store's own calls tell the operator.
      pollfd stopped{wake_.get(), POLLIN, 0};
      poll(&stopped, 1, static_cast<int>(kReconnect.count()));
      Drain(wake_.get());
    }
  }
}

void Peers::Serve(const std::stop_token& stop, pqxx::connection& connection) {
  const std::string channel = ChannelOf(connection);
  const Receiver receiver(connection, channel,
                          [this](const std::string& payload) { Receive(payload); });
  options_.on_missed();
  auto next_send = steady_clock::now();
  auto next_reading = next_send;
  while (!stop.stop_requested()) {
    const auto now = steady_clock::now();
    if (now >= next_reading) {
      ReadClock(connection, /*first=*/false);
      next_reading = now + kBetweenClockReadings;
    }
    const bool pending = HasOutbox();
    if (pending && now >= next_send) {
      Send(connection, channel);
      next_send = now + kBetweenSends;
      continue;
    }
    const auto until = pending ? std::min(next_send, next_reading) : next_reading;
    Wait(connection, !pending,
         std::chrono::duration_cast<milliseconds>(until - now) + milliseconds(1));
  }
}

void Peers::Wait(pqxx::connection& connection, bool also_for_outbox, milliseconds timeout) {
  pollfd fds[] = {{connection.sock(), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  poll(fds, also_for_outbox ? 2 : 1, static_cast<int>(timeout.count()));
  if (fds[1].revents != 0) Drain(wake_.get());
  connection.get_notifs();
  if (!connection.is_open() || (fds[0].revents & (POLLHUP | POLLERR)) != 0) {
    throw pqxx::broken_connection("the connection for wake-ups broke");
  }
}

void Peers::Receive(const std::string& payload) {
  if (payload == kEverything) return options_.on_missed();
  for (size_t begin = 0; begin < payload.size();) {
    const size_t end = std::min(payload.find('\n', begin), payload.size());
    const std::string line = payload.substr(begin, end - begin);
    begin = end + 1;
    const size_t slash = line.find('/');
    if (slash == std::string::npos) {
      options_.on_wakeup(nullptr);
      continue;
    }
    const JobKey job{line.substr(0, slash), line.substr(slash + 1)};
    options_.on_wakeup(&job);
  }
}

void Peers::Send(pqxx::connection& connection, const std::string& channel) {
  Outbox outbox;
  {
    std::lock_guard lock(mutex_);
    outbox = std::exchange(outbox_, {});
  }
  const std::vector<std::string> payloads = outbox.everything
                                                ? std::vector<std::string>{kEverything}
                                                : PayloadsOf(outbox.jobs, outbox.work);
  pqxx::nontransaction session(connection);
  for (const std::string& payload : payloads) {
    session.exec_params("SELECT pg_notify($1, $2)", channel, payload);
  }
}

void Peers::ReadClock(pqxx::connection& connection, bool first) {
  pqxx::nontransaction session(connection);
  const auto before = steady_clock::now();
  const auto there =
      session.exec1("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")[0]
          .as<int64_t>();
  const auto trip = steady_clock::now() - before;
  const Time read = FromUnixMicros(there);
  const auto stepped = [&] {
    const Duration since = std::chrono::duration_cast<Duration>(trip / 2);
    return std::chrono::abs(options_.clock->Now() - since - read) > trip;
  };
  if (first || trip <= kGoodReading || stepped()) options_.clock->Follow(read, before + trip / 2);
}

absl::StatusOr<std::string> SharedSecret(const std::string& conninfo, const std::string& name,
                                         const std::string& fresh) {
  auto db = Database::Open(conninfo);
  if (!db.ok()) return db.status();
  (*db)->Execute("INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", name,
                 Blob{fresh});
  Rows rows = (*db)->Query("SELECT value FROM secrets WHERE name = $1", name);
  if (rows.Next()) return rows.Bytes(0);
  return (*db)->status();
}

}  // namespace quantry::server::postgres
