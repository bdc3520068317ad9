// What is special to abfs:// storage. Internal to common/storage*.cc.
#pragma once

#include <arrow/filesystem/filesystem.h>
#include <arrow/result.h>

#include <memory>
#include <string>
#include <string_view>

namespace quantry::storage_internal {

// The file system of an abfs:// URI; `base` becomes container/prefix. What a URI
// says of credentials (credential_kind, client_id, a SAS) is taken; else, for the
// account that AZURE_STORAGE_ACCOUNT names, AZURE_STORAGE_KEY or
// AZURE_STORAGE_SAS_TOKEN; else what Microsoft's client finds by itself
// (AZURE_TENANT_ID and so on, workload and managed identities).
//
// A URI may be a tenant's: tokens and the SAS of the environment go to Microsoft's
// hosts by https alone (Invalid otherwise). Of a key only signatures are sent, so
// it serves other hosts too.
arrow::Result<std::shared_ptr<arrow::fs::FileSystem>> OpenAzure(std::string_view uri,
                                                                std::string* base);

}  // namespace quantry::storage_internal
