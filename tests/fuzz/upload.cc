// The states of an upload: begin, append, drop, finish in any order. Whatever
// happens, a finished blob has the announced bytes.
#include "common/digest.h"
#include "server/artifacts/local_blob_store.h"
#include "tests/fuzz/scratch.h"

namespace {

using namespace quantry;
using namespace quantry::server;

// Takes bytes off the front of the input.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t Byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const fuzz::Scratch folder;
  std::filesystem::remove_all(folder.path() + "/blobs");
  const auto store = OpenLocalBlobStore(folder.path() + "/blobs");
  if (!store.ok()) __builtin_trap();
  Input input(data, size);
  const std::string content(input.Byte() % 32, 'c');
  BlobId blob{Sha256Hex(content), static_cast<int64_t>(content.size())};
  if (input.Byte() % 8 == 0) blob.size_bytes = input.Byte() - 16;
  std::unique_ptr<BlobUpload> upload;
  for (int step = 0; step < 64 && !input.empty(); ++step) {
    switch (input.Byte() % 5) {
      case 0: {
        auto begun = (*store)->Begin("tenant", blob, input.Byte() - 1);
        if (begun.ok()) upload = *std::move(begun);
        break;
      }
      case 1:
        if (upload) (void)upload->Append(std::string(input.Byte() % 40, 'c')).ok();
        break;
      case 2:
        if (upload) (void)upload->Append(std::string(1, static_cast<char>(input.Byte()))).ok();
        break;
      case 3:
        upload.reset();
        break;
      case 4: {
        if (!upload) break;
        const bool finished = upload->Finish().ok();
        const auto state = (*store)->Find("tenant", blob);
        if (finished && !(state.ok() && state->complete)) __builtin_trap();
        break;
      }
    }
  }
  upload.reset();
  const auto state = (*store)->Find("tenant", blob);
  if (state.ok() && state->complete) {
    const auto digest = Sha256File(folder.path() + "/blobs/tenant/" + blob.sha256);
    if (!digest.ok() || digest->sha256 != blob.sha256) __builtin_trap();
  }
  return 0;
}
