#include "common/storage_azure.h"

#include <arrow/filesystem/azurefs.h>
#include <arrow/status.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <string>

#include "common/storage_repeat.h"

namespace quantry::storage_internal {
namespace {

namespace afs = arrow::fs;

// Where Azure's public and national clouds have their storage.
constexpr std::string_view kMicrosofts[] = {".core.windows.net", ".core.chinacloudapi.cn",
                                            ".core.usgovcloudapi.net"};

// The client's own before it repeats a request is 640 ms at least.
constexpr auto kFirstOwnWait = std::chrono::milliseconds(600);

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Letters, digits and `others`: nothing that ends a host in a URL.
bool HoldsOnly(std::string_view text, std::string_view others) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           others.find(c) != std::string_view::npos;
  });
}

bool IsMicrosofts(std::string_view authority) {
  return HoldsOnly(authority, ".-") &&
         std::any_of(std::begin(kMicrosofts), std::end(kMicrosofts),
                     [&](std::string_view suffix) { return authority.ends_with(suffix); });
}

bool MayHaveTokens(const afs::AzureOptions& options) {
  return options.blob_storage_scheme == "https" && options.dfs_storage_scheme == "https" &&
         IsMicrosofts(options.blob_storage_authority) &&
         IsMicrosofts(options.dfs_storage_authority);
}

// Whether the URI said nothing of credentials.
bool HasNone(const afs::AzureOptions& options) {
  afs::AzureOptions plain;
  plain.account_name = options.account_name;
  plain.blob_storage_authority = options.blob_storage_authority;
  plain.dfs_storage_authority = options.dfs_storage_authority;
  plain.blob_storage_scheme = options.blob_storage_scheme;
  plain.dfs_storage_scheme = options.dfs_storage_scheme;
  plain.background_writes = options.background_writes;
  return options.Equals(plain);
}

bool IsAnonymous(const afs::AzureOptions& options) {
  afs::AzureOptions anonymous = options;
  return anonymous.ConfigureAnonymousCredential().ok() && options.Equals(anonymous);
}

// What the environment has for the URI's account.
arrow::Status UseEnvironment(afs::AzureOptions* options) {
  const std::string account = Environment("AZURE_STORAGE_ACCOUNT");
  const std::string key = Environment("AZURE_STORAGE_KEY");
  std::string sas = Environment("AZURE_STORAGE_SAS_TOKEN");
  if (account.empty() && !(key.empty() && sas.empty())) {
    return arrow::Status::Invalid(
        "AZURE_STORAGE_KEY and AZURE_STORAGE_SAS_TOKEN need the account they are of in "
        "AZURE_STORAGE_ACCOUNT");
  }
  if (options->account_name != account) return arrow::Status::OK();
  if (!key.empty()) return options->ConfigureAccountKeyCredential(key);
  if (sas.empty()) return arrow::Status::OK();
  if (!sas.starts_with('?')) sas.insert(0, 1, '?');
  return options->ConfigureSASCredential(sas);
}

}  // namespace

// Texts of the client's transport, which has no codes.
bool BrokeOff(const arrow::Status& status, std::chrono::steady_clock::duration took) {
  if (!status.IsIOError()) return false;
  const std::string& text = status.message();
  const auto says = [&](const char* words) { return text.find(words) != std::string::npos; };
  if (says("before getting full response")) return true;
  return took < kFirstOwnWait &&
         (says("reading from network socket") || says("closed by the server while trying to read"));
}

arrow::Result<std::shared_ptr<afs::FileSystem>> OpenAzure(std::string_view uri, std::string* base) {
  ARROW_ASSIGN_OR_RAISE(auto options, afs::AzureOptions::FromUri(std::string(uri), base));
  if (!HoldsOnly(options.account_name, "-")) {
    return arrow::Status::Invalid(
        "it names no storage account; wanted abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/PREFIX");
  }
  // In the background the blocks of a large file would fill the memory, and an error of
  // credentials, which is an exception, would end the process.
  options.background_writes = false;
  // A SAS in the URI is known to who wrote it, and so is the host.
  const bool uri_says_all = IsAnonymous(options) || !options.SasToken().empty();
  if (HasNone(options)) ARROW_RETURN_NOT_OK(UseEnvironment(&options));
  if (!uri_says_all && options.AccountKey().empty() && !MayHaveTokens(options)) {
    return arrow::Status::Invalid(
        "tokens are sent to Microsoft's hosts by https alone, not to ",
        options.AccountBlobUrl(options.account_name),
        "; give the account's key by AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or say "
        "credential_kind=anonymous");
  }
  return afs::AzureFileSystem::Make(options);
}

}  // namespace quantry::storage_internal
