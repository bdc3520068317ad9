// model.safetensors.index.json beside one valid shard.
#include "tests/fuzz/scratch.h"
#include "worker/engine/base/error.h"
#include "worker/engine/model/shards.h"

namespace {

const quantry::fuzz::Scratch& Folder() {
  static const quantry::fuzz::Scratch folder;
  static const bool written = [] {
    const std::string json = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    std::string shard(8, '\0');
    shard[0] = static_cast<char>(json.size());
    folder.Write("model-00001-of-00001.safetensors", shard + json + "1234");
    return true;
  }();
  (void)written;
  return folder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto& folder = Folder();
  folder.Write("model.safetensors.index.json", {reinterpret_cast<const char*>(data), size});
  try {
    for (const auto& file : quantry::engine::OpenShards(folder.path())) {
      if (file->path().rfind(folder.path() + "/", 0) != 0) __builtin_trap();
    }
  } catch (const quantry::engine::EngineError&) {
  }
  return 0;
}
