// The filter expression of ListQuantizationJobs.
#include "server/rpc/filter.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)quantry::server::ParseJobFilter({reinterpret_cast<const char*>(data), size}).ok();
  return 0;
}
