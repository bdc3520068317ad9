#pragma once

#include "client/cli/options.h"

// Every command of the CLI; cli.cc holds the table. One file a family.
namespace quantry::cli {

void AddSubmit(CLI::App& app, Action& chosen);
void AddQuote(CLI::App& app, Action& chosen);
void AddGet(CLI::App& app, Action& chosen);
void AddList(CLI::App& app, Action& chosen);
void AddWatch(CLI::App& app, Action& chosen);
void AddEvents(CLI::App& app, Action& chosen);
void AddCancel(CLI::App& app, Action& chosen);
void AddDelete(CLI::App& app, Action& chosen);
void AddRetry(CLI::App& app, Action& chosen);
void AddUpdate(CLI::App& app, Action& chosen);
void AddPull(CLI::App& app, Action& chosen);
void AddExport(CLI::App& app, Action& chosen);
void AddReport(CLI::App& app, Action& chosen);
void AddCompare(CLI::App& app, Action& chosen);
void AddMethods(CLI::App& app, Action& chosen);
void AddServerInfo(CLI::App& app, Action& chosen);
void AddWorkers(CLI::App& app, Action& chosen);
void AddQueue(CLI::App& app, Action& chosen);
void AddQuota(CLI::App& app, Action& chosen);
void AddGc(CLI::App& app, Action& chosen);
void AddLogin(CLI::App& app, Action& chosen);
void AddContext(CLI::App& app, Action& chosen);
void AddCompletion(CLI::App& app, Action& chosen);
void AddVersion(CLI::App& app, Action& chosen);

}  // namespace quantry::cli
