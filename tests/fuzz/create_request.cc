// CreateQuantizationJob as a client sends it: what is accepted has defaults
// that do not change again, and a stable digest.
#include "quantry/v1/quantization_service.pb.h"
#include "server/rpc/validation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry;
  v1::CreateQuantizationJobRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;
  const auto submit = server::ValidateCreate(request, {});
  if (submit.ok()) {
    v1::JobSpec spec = submit->spec;
    server::FillDefaults(&spec);
    if (server::DigestOf(spec) != submit->spec_digest) __builtin_trap();
  }
  v1::UpdateQuantizationJobRequest update;
  *update.mutable_quantization_job() = request.quantization_job();
  update.mutable_update_mask()->add_paths("labels");
  (void)server::ValidateUpdate(update).ok();
  return 0;
}
