// manifest.json of an artifact, as the agent takes it.
#include "common/storage.h"
#include "worker/agent/artifact_uploader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quantry;
  const auto manifest = agent::ParseManifest({reinterpret_cast<const char*>(data), size});
  if (!manifest.ok()) return 0;
  if (manifest->files().empty()) __builtin_trap();
  (void)agent::ResultFromManifest(*manifest, "file:///artifact");
  for (const auto& file : manifest->files()) {
    const bool plain = CheckRelativePath(file.path()).ok();
    if (plain &&
        (file.path()[0] == '/' || ("/" + file.path() + "/").find("/../") != std::string::npos))
      __builtin_trap();
  }
  return 0;
}
