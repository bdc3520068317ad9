// manifest.json of an artifact, as agent and server take it.
#include "common/storage.h"
#include "google/protobuf/util/json_util.h"
#include "quantry/v1/artifact.pb.h"
#include "worker/agent/artifact_uploader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry;
  v1::Manifest manifest;
  google::protobuf::util::JsonParseOptions options;
  options.ignore_unknown_fields = true;
  const std::string json(reinterpret_cast<const char*>(data), size);
  if (!google::protobuf::util::JsonStringToMessage(json, &manifest, options).ok()) return 0;
  (void)agent::ResultFromManifest(manifest, "file:///artifact");
  for (const auto& file : manifest.files()) {
    const bool plain = CheckRelativePath(file.path()).ok();
    if (plain &&
        (file.path()[0] == '/' || ("/" + file.path() + "/").find("/../") != std::string::npos))
      __builtin_trap();
  }
  return 0;
}
