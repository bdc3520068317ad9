// manifest.json of an artifact that a worker wrote, as the server reads it at the commit and for
// each download, and the files it names. What a name opens lies in the artifact's folder.
#include "server/rpc/committed_manifest.h"
#include "common/digest.h"
#include "server/artifacts/artifact_store.h"
#include "tests/fuzz/scratch.h"

namespace {

using namespace quantry;
using namespace quantry::server;

constexpr std::string_view kOutside = "outside";

// A root with one artifact, a file beside it, and one above the root.
class Root {
 public:
  Root() {
    std::filesystem::create_directories(scratch_.path() + "/store/a/b");
    for (const char* name : {"outside", "store/outside"}) scratch_.Write(name, kOutside);
    scratch_.Write("store/a/b/file", "inside");
    auto store = OpenArtifactStore("file://" + scratch_.path() + "/store");
    if (!store.ok()) __builtin_trap();
    store_ = *std::move(store);
    artifact_.uri = store_->RootUri() + "/a";
  }
  absl::StatusOr<v1::Manifest> Read(const std::string& json, const std::string& sha256) {
    scratch_.Write("store/a/manifest.json", json);
    artifact_.manifest_sha256 = sha256;
    std::int64_t size_bytes = 0;
    auto manifest = ReadManifest(store_.get(), artifact_, &size_bytes);
    if (manifest.ok() && size_bytes != static_cast<std::int64_t>(json.size())) __builtin_trap();
    return manifest;
  }
  void Open(const std::string& path) {
    auto file = store_->Open(artifact_.uri, path);
    if (file.ok() && *(*file)->ReadAt(0, kOutside.size()) == kOutside) __builtin_trap();
  }

 private:
  fuzz::Scratch scratch_;
  std::unique_ptr<ArtifactStore> store_;
  Artifact artifact_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Root root;
  const std::string json(reinterpret_cast<const char*>(data), size);
  const std::string sha256 = Sha256Hex(json);
  if (root.Read(json, Sha256Hex(sha256)).ok()) __builtin_trap();
  const auto manifest = root.Read(json, sha256);
  if (!manifest.ok()) return 0;
  for (const auto& file : manifest->files()) root.Open(file.path());
  return 0;
}
