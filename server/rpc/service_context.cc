#include "server/rpc/service_context.h"

#include "absl/strings/str_cat.h"
#include "google/protobuf/descriptor.h"
#include "quantry/v1/admin_service.pb.h"
#include "quantry/v1/artifact_service.pb.h"
#include "quantry/v1/quantization_service.pb.h"
#include "quantry/v1/worker_service.pb.h"

namespace quantry::server {

std::vector<std::string> AllMethodNames() {
  std::vector<std::string> names;
  for (const google::protobuf::FileDescriptor* file :
       {v1::CreateQuantizationJobRequest::descriptor()->file(),
        v1::UploadBlobRequest::descriptor()->file(), v1::AcquireJobRequest::descriptor()->file(),
        v1::QueueStats::descriptor()->file()}) {
    for (int i = 0; i < file->service_count(); ++i) {
      const google::protobuf::ServiceDescriptor& service = *file->service(i);
      for (int j = 0; j < service.method_count(); ++j) {
        names.push_back(absl::StrCat("/", service.full_name(), "/", service.method(j)->name()));
      }
    }
  }
  return names;
}

const std::vector<std::string>& UnimplementedMethods() {
  static const std::vector<std::string> names;
  return names;
}

}  // namespace quantry::server
