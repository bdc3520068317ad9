#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <random>

#include "client/cli/cli.h"
#include "client/cli/exit_codes.h"
#include "client/cli/interrupt.h"
#include "common/grpc_reconnect.h"

namespace {

constexpr int kDefaultColumns = 80;

int TerminalColumns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kDefaultColumns;
}

std::string Variable(std::string_view name) {
  const char* value = std::getenv(std::string(name).c_str());
  return value == nullptr ? "" : value;
}

// `quantry events JOB | head`: who reads no more wants no complaint.
bool ReaderLeft() {
  pollfd out{.fd = STDOUT_FILENO, .events = POLLOUT, .revents = 0};
  return poll(&out, 1, 0) > 0 && (out.revents & (POLLERR | POLLHUP)) != 0;
}

// A full disk must not leave half an answer and exit code 0.
int AfterOutput(int code) {
  std::cout << std::flush;
  if (std::cout || ReaderLeft()) return code;
  std::cerr << "quantry: cannot write all of the output: is the disk full?\n";
  return code == 0 ? static_cast<int>(quantry::cli::ExitCode::kJobFailed) : code;
}

}  // namespace

int main(int argc, char** argv) {
  quantry::FindServersQuickly();
  std::signal(SIGPIPE, SIG_IGN);
  // gRPC reports failed connections by itself; ours are in the error message.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  quantry::cli::Interrupter interrupter;
  std::mt19937_64 generator(std::random_device{}());
  quantry::cli::Environment env{.out = std::cout, .err = std::cerr};
  env.out_is_terminal = isatty(STDOUT_FILENO) != 0;
  env.err_is_terminal = isatty(STDERR_FILENO) != 0;
  env.columns = TerminalColumns;
  env.variable = Variable;
  env.sleep = [&](std::chrono::milliseconds time) { interrupter.SleepFor(time); };
  env.random = [&] { return std::uniform_real_distribution<double>(0, 1)(generator); };
  env.interrupter = &interrupter;
  const int code = quantry::cli::RunCli(std::vector<std::string>(argv + 1, argv + argc), env);
  return AfterOutput(code);
}
