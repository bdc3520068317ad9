// The messages of UploadBlob calls: headers, chunks, ends in any order. Whatever
// happens, a finished blob has the announced bytes.
#include <utility>

#include "common/crc32c.h"
#include "common/digest.h"
#include "server/artifacts/local_blob_store.h"
#include "server/rpc/upload_session.h"
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

// Streams of one client, one after the other: an error ends a stream, and so
// does its end; the next message begins another.
class Client {
 public:
  Client(BlobStore* store, const BlobId& blob) : store_(store), blob_(blob) { Begin(); }

  void Header(std::int64_t offset) {
    v1::UploadBlobRequest request;
    request.mutable_header()->set_parent("tenants/tenant");
    request.mutable_header()->mutable_blob()->set_sha256(blob_.sha256);
    request.mutable_header()->mutable_blob()->set_size_bytes(blob_.size_bytes);
    request.mutable_header()->set_write_offset(offset);
    if (Send(request) && std::exchange(header_, true)) __builtin_trap();
  }
  void Chunk(const std::string& data, std::uint32_t wrong = 0) {
    v1::UploadBlobRequest request;
    request.mutable_chunk()->set_data(data);
    request.mutable_chunk()->set_crc32c(Crc32c(data) ^ wrong);
    if (Send(request) && (!header_ || wrong != 0)) __builtin_trap();
  }
  void Nothing() {
    if (Send({})) __builtin_trap();
  }
  void Begin() {
    session_.reset();  // unlocks the file
    session_ = std::make_unique<UploadSession>(
        store_,
        UploadRules{.max_blob_bytes = 64,
                    .admit = [](const v1::UploadBlobRequest&) { return absl::OkStatus(); },
                    .room = [](const std::string&, std::int64_t) { return absl::OkStatus(); },
                    .count = [](std::int64_t) {}});
    header_ = false;
  }
  void End() {
    v1::UploadBlobResponse response;
    const bool done = session_->Complete(nullptr, &response).ok();
    const auto state = store_->Find("tenant", blob_);
    if (done && !(header_ && state.ok() && state->complete)) __builtin_trap();
    Begin();
  }

 private:
  bool Send(const v1::UploadBlobRequest& request) {
    const bool taken = session_->Take(request).ok();
    if (!taken) Begin();
    return taken;
  }

  BlobStore* const store_;
  const BlobId blob_;
  std::unique_ptr<UploadSession> session_;
  bool header_ = false;  // one was taken
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
  {
    Client client(store->get(), blob);
    for (int step = 0; step < 64 && !input.empty(); ++step) {
      switch (input.Byte() % 7) {
        case 0:
          client.Header(input.Byte() - 1);
          break;
        case 1:
          client.Chunk(std::string(input.Byte() % 40, 'c'));
          break;
        case 2:
          client.Chunk(std::string(1, static_cast<char>(input.Byte())));
          break;
        case 3:
          client.Begin();
          break;
        case 4:
          client.End();
          break;
        case 5:
          client.Chunk("c", 1u + input.Byte());
          break;
        case 6:
          client.Nothing();
          break;
      }
    }
  }
  const auto state = (*store)->Find("tenant", blob);
  if (state.ok() && state->complete) {
    const auto digest = Sha256File(folder.path() + "/blobs/tenant/" + blob.sha256);
    if (!digest.ok() || digest->sha256 != blob.sha256) __builtin_trap();
  }
  return 0;
}
