// Where a command's server and credentials come from.
#include "client/cli/contexts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <sstream>
#include <stdexcept>

#include "client/cli/errors.h"
#include "client/cli/hints.h"
#include "client/cli/testing/run.h"

namespace quantry::cli {
namespace {

using testing::HasSubstr;

class ContextsTest : public testing::Test {
 protected:
  ContextsTest() {
    variables["XDG_CONFIG_HOME"] = folder / "config";
    variables["QUANTRY_DATA_DIR"] = folder / "data";
    token = folder.Write("token", "qtk_1\n");
    env.variable = [this](std::string_view name) {
      const auto found = variables.find(std::string(name));
      return found == variables.end() ? std::string() : found->second;
    };
  }

  void Write(const std::string& json) { folder.Write("config/quantry/config.json", json); }
  // A server of this machine: a token may go there without TLS.
  void WriteLab() {
    Write(
        R"({"current":"lab","contexts":{"lab":{"server":"127.0.0.1:1","tenant":"acme","token_file":")" +
        token + R"("},"web":{"server":"127.0.0.2:2"}}})");
  }
  GlobalOptions Resolved(GlobalOptions global = {}) {
    const absl::Status status = ResolveGlobal(env, &global);
    EXPECT_TRUE(status.ok()) << status;
    return global;
  }

  TempFolder folder;
  std::map<std::string, std::string> variables;
  std::string token;
  std::ostringstream ignored;
  Environment env{.out = ignored, .err = ignored};
};

TEST_F(ContextsTest, WithoutAny) {
  const GlobalOptions global = Resolved();
  EXPECT_EQ(global.server, "");
  EXPECT_EQ(global.tenant, "default");
  EXPECT_TRUE(LoadContexts(env)->all.empty());
}

TEST_F(ContextsTest, TheCurrentOneFillsWhatIsMissing) {
  WriteLab();
  const GlobalOptions global = Resolved();
  EXPECT_EQ(global.server, "127.0.0.1:1");
  EXPECT_EQ(global.server_source, "context lab");
  EXPECT_EQ(global.tenant, "acme");
  EXPECT_EQ(global.token_file, token);
  EXPECT_EQ(Resolved({.context = "web"}).server, "127.0.0.2:2");
  EXPECT_EQ(Resolved({.context = "web"}).token_file, "");
  variables["QUANTRY_CONTEXT"] = "web";
  EXPECT_EQ(Resolved().server, "127.0.0.2:2");
  EXPECT_EQ(Resolved({.context = "lab"}).server, "127.0.0.1:1");
}

TEST_F(ContextsTest, FlagsBeatVariablesBeatTheContext) {
  WriteLab();
  variables["QUANTRY_TENANT"] = "env";
  EXPECT_EQ(Resolved().tenant, "env");
  EXPECT_EQ(Resolved({.tenant = "flag"}).tenant, "flag");
  variables["QUANTRY_TOKEN_FILE"] = folder.Write("other", "qtk_2");
  EXPECT_EQ(Resolved().token_file, folder / "other");
}

TEST_F(ContextsTest, ANamedServerGetsNothingOfTheCurrentOne) {
  WriteLab();
  const GlobalOptions flag = Resolved({.server = "127.0.0.3:3"});
  EXPECT_EQ(flag.token_file, "");
  EXPECT_EQ(flag.tenant, "default");
  EXPECT_EQ(flag.server_source, "--server");
  variables["QUANTRY_SERVER"] = "127.0.0.4:4";
  EXPECT_EQ(Resolved().server_source, "QUANTRY_SERVER");
  EXPECT_EQ(Resolved().token_file, "");
}

TEST_F(ContextsTest, ANamedContextBringsItsServer) {
  WriteLab();
  variables["QUANTRY_SERVER"] = "127.0.0.4:4";
  variables["QUANTRY_TOKEN_FILE"] = folder.Write("fours", "qtk_4");
  const GlobalOptions lab = Resolved({.context = "lab"});
  EXPECT_EQ(lab.server, "127.0.0.1:1");
  EXPECT_EQ(lab.server_source, "context lab");
  EXPECT_EQ(lab.token_file, token) << "the variable's token is for the variable's server";
  EXPECT_EQ(Resolved({.context = "web"}).token_file, "");
  EXPECT_EQ(Resolved({.server = "127.0.0.1:1", .context = "lab"}).server, "127.0.0.1:1");
  const auto refused = [this](GlobalOptions global) {
    return std::string(ResolveGlobal(env, &global).message());
  };
  EXPECT_THAT(refused({.server = "127.0.0.3:3", .context = "lab"}),
              HasSubstr("--server names 127.0.0.3:3, context \"lab\" is for 127.0.0.1:1"));
  variables["QUANTRY_CONTEXT"] = "lab";
  EXPECT_THAT(refused({}), HasSubstr("QUANTRY_SERVER names 127.0.0.4:4"));
  const GlobalOptions flag = Resolved({.server = "127.0.0.3:3"});
  EXPECT_EQ(flag.server, "127.0.0.3:3");
  EXPECT_EQ(flag.tenant, "default") << "the flag beats QUANTRY_CONTEXT";
  variables["QUANTRY_SERVER"] = "127.0.0.1:1";
  EXPECT_EQ(Resolved().token_file, folder / "fours") << "the same server";
}

TEST_F(ContextsTest, TheVariablesTokenIsForTheVariablesServer) {
  variables["QUANTRY_TOKEN_FILE"] = folder.Write("fours", "qtk_4");
  variables["QUANTRY_TENANT"] = "env";
  EXPECT_EQ(Resolved({.server = "127.0.0.3:3"}).token_file, folder / "fours") << "no other server";
  variables["QUANTRY_SERVER"] = "127.0.0.4:4";
  EXPECT_EQ(Resolved().token_file, folder / "fours");
  EXPECT_EQ(Resolved({.server = "127.0.0.4:4"}).token_file, folder / "fours");
  const GlobalOptions other = Resolved({.server = "127.0.0.3:3"});
  EXPECT_EQ(other.token_file, "");
  EXPECT_EQ(other.tenant, "env") << "a tenant is no secret";
}

TEST_F(ContextsTest, WhatCannotWorkIsSaidBeforeTheCall) {
  WriteLab();
  const auto refused = [this](GlobalOptions global) {
    return std::string(ResolveGlobal(env, &global).message());
  };
  EXPECT_THAT(refused({.context = "prod"}), HasSubstr("no context \"prod\": wanted lab, web"));
  EXPECT_THAT(refused({.server = "far:1", .token_file = token}), HasSubstr("wanted TLS to send"));
  EXPECT_THAT(refused({.tls_ca = "/no/ca.pem"}), HasSubstr("/no/ca.pem"));
  EXPECT_THAT(refused({.tls_ca = "system", .client_cert = "x"}), HasSubstr("together"));
}

TEST_F(ContextsTest, AnAddressHasAPort) {
  for (const char* bad : {"far", "far:", ":7070", "far:port", "far:0", "far:65536",
                          "far:70700000000", "::1:7070", "[::1]", "[::1]:", "far:7070 "}) {
    GlobalOptions global{.server = bad};
    EXPECT_THAT(std::string(ResolveGlobal(env, &global).message()),
                HasSubstr("--server: wanted HOST:PORT with a port of 1 to 65535, got \"" +
                          std::string(bad) + "\""));
  }
  for (const char* good : {"far:7070", "far:65535", "[::1]:7070", "unix:/run/quantry.sock",
                           "dns:///far:7070", "ipv4:127.0.0.1:7070"}) {
    EXPECT_EQ(Resolved({.server = good}).server, good);
  }
  Write(R"({"current":"lab","contexts":{"lab":{"server":"far"}}})");
  GlobalOptions global;
  EXPECT_THAT(std::string(ResolveGlobal(env, &global).message()),
              HasSubstr("context lab: wanted HOST:PORT"));
}

TEST_F(ContextsTest, WrongFilesAreNamed) {
  for (const char* json : {"", "{", "[]", R"({"contexts":[]})", R"({"more":1})",
                           R"({"contexts":{"a":{}}})", R"({"contexts":{"a":{"server":7}}})",
                           R"({"contexts":{"a":{"server":"x:1","token":"t"}}})"}) {
    Write(json);
    const auto contexts = LoadContexts(env);
    ASSERT_FALSE(contexts.ok()) << json;
    EXPECT_THAT(std::string(contexts.status().message()), HasSubstr("quantry/config.json: "));
  }
}

TEST_F(ContextsTest, CommandsChangeTheFile) {
  const auto run = [this](const std::vector<std::string>& arguments) {
    return RunForTest(arguments, variables);
  };
  EXPECT_THAT(run({"context", "list"}).out, HasSubstr("quantry login"));
  EXPECT_EQ(run({"login", "127.0.0.1:1", "--no-check", "--token-file", token}).code, 0);
  EXPECT_EQ(run({"login", "[::1]:2", "--no-check", "--name", "six", "--tenant", "acme"}).code, 0);
  EXPECT_EQ(run({"login", "x:1", "--no-check", "--name", "a b"}).code, 2);
  EXPECT_EQ(run({"login", "x:1", "--no-check", "--tenant", "No Tenant"}).code, 2);
  EXPECT_EQ(run({"login", "x:1", "--no-check", "--server", "y:1"}).code, 2);
  EXPECT_EQ(run({"login", "x:1"}).code, 7) << "nobody there: nothing is remembered";
  const CliRun list = run({"context", "list", "--output", "json"});
  ASSERT_EQ(list.json().size(), 2u) << list.out;
  EXPECT_EQ(list.json()[0]["name"], "127.0.0.1");
  EXPECT_EQ(list.json()[0]["token_file"], token);
  EXPECT_EQ(list.json()[1]["current"], true);
  EXPECT_EQ(run({"context", "use", "127.0.0.1"}).code, 0);
  EXPECT_THAT(run({"context", "show"}).out, HasSubstr("127.0.0.1:1"));
  EXPECT_EQ(run({"context", "delete", "127.0.0.1"}).code, 0);
  EXPECT_EQ(run({"context", "show"}).code, 4);
  EXPECT_EQ(run({"context", "use", "127.0.0.1"}).code, 4);
  EXPECT_EQ(run({"context", "show", "six"}).code, 0);
}

TEST_F(ContextsTest, APathThatIsNoTextIsRefused) {
  const std::string odd = folder.Write("tok\xff\xfe", "qtk_1\n");
  for (const char* output : {"text", "json"}) {
    const CliRun run = RunForTest(
        {"login", "127.0.0.1:1", "--no-check", "--token-file", odd, "--output", output}, variables);
    EXPECT_EQ(run.code, 2) << run.err;
    EXPECT_THAT(run.err, HasSubstr("--token-file: wanted UTF-8"));
  }
  EXPECT_TRUE(LoadContexts(env)->all.empty());
}

TEST_F(ContextsTest, ASaveNeedsNoNameThatIsTaken) {
  folder.Write("config/quantry/config.json.new/x", "");  // another save, for all we know
  ASSERT_TRUE(SaveContexts(env, {.current = "a", .all = {{"a", {.server = "x:1"}}}}).ok());
  EXPECT_EQ(LoadContexts(env)->current, "a");
  const std::filesystem::path config(folder / "config/quantry");
  EXPECT_EQ(std::filesystem::status(config / "config.json").permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  using Iterator = std::filesystem::directory_iterator;
  EXPECT_EQ(std::distance(Iterator(config), Iterator()), 2) << "the save left something behind";
}

TEST_F(ContextsTest, ASaveThatFailsKeepsTheFileAndSaysWhy) {
  folder.Write("config/quantry/config.json/x", "");
  const absl::Status status = SaveContexts(env, {.current = "a", .all = {}});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("quantry/config.json\": Is a directory"));
  const std::filesystem::path config(folder / "config/quantry");
  using Iterator = std::filesystem::directory_iterator;
  EXPECT_EQ(std::distance(Iterator(config), Iterator()), 1);
}

TEST_F(ContextsTest, WhatACommandThrowsIsAnError) {
  env.variable = [](std::string_view) -> std::string { throw std::runtime_error("broken"); };
  EXPECT_EQ(RunCli({"context", "list"}, env), 1);
  EXPECT_THAT(ignored.str(), HasSubstr("quantry: the command broke off: broken\n"));
  EXPECT_EQ(RunCli({"list"}, env), 1);
}

TEST(ConnectionHint, ByWhatGrpcSays) {
  struct Case {
    const char* message;
    bool tls;
    bool certificate;
    const char* wanted;
  };
  const Case cases[] = {
      {"... Connection refused", false, false, "is quantryd running there"},
      {"... Connection refused", true, false, "is quantryd running there"},
      {"Socket closed", false, false, "does the server want TLS"},
      {"Socket closed", true, false, "--client-cert and --client-key"},
      {"Socket closed", true, true, "is quantryd running there"},
      {"recvmsg:Connection reset by peer", false, false, "does the server want TLS"},
      {"SSL routines::wrong version number", true, false, "does not speak TLS"},
      {"Ssl handshake failed: certificate verify failed", true, false, "the CA that signed"},
      {"Hostname Verification Check failed.", true, true, "the CA that signed"},
  };
  for (const Case& test : cases) {
    EXPECT_THAT(ConnectionHint(test.message, test.tls, test.certificate), HasSubstr(test.wanted))
        << test.message << test.certificate;
  }
}

}  // namespace
}  // namespace quantry::cli
