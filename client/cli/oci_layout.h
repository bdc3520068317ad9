#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "quantry/v1/artifact.pb.h"

// An artifact as an OCI image layout, ready for `oras cp --from-oci-layout` or
// `skopeo copy oci:DIR:TAG`: one layer a file, media types of CNCF ModelPack
// (raw files, path in the annotation org.cncf.model.filepath), blobs by sha256.
// The same artifact gives the same bytes.
//
//   DIR/oci-layout                 {"imageLayoutVersion": "1.0.0"}
//   DIR/index.json                 one descriptor a tag, of the image manifest
//   DIR/blobs/sha256/{digest}      manifest, config, layers
namespace quantry::cli {

// One layer: a file of the output, or the artifact's manifest.json.
struct OciLayer {
  std::string path;  // annotation: relative to the model's folder
  std::string media_type;
  std::string sha256;
  int64_t size_bytes = 0;
};

struct OciImage {
  std::string manifest_sha256;
  int64_t manifest_bytes = 0;
  std::string format;  // of the output: "compressed-tensors"
  std::vector<OciLayer> layers;
  int64_t bytes = 0;  // of all layers
};

struct OciOptions {
  std::string folder;  // a pulled artifact
  std::string layout;  // made when missing; other tags in it stay
  std::string format;  // which output; "" = the first
  std::string tag = "latest";
};

// The media type of a file by its name.
std::string OciMediaType(const std::string& path);

// OK for what OCI allows in org.opencontainers.image.ref.name.
absl::Status CheckOciTag(const std::string& tag);

// OK when WriteOciLayout can add an image there: nothing, an empty folder or a
// layout. Errors as there.
absl::Status CheckOciLayout(const std::string& layout);

// Copies the output's files into the layout and writes config, manifest and
// index. Each file is checked against the artifact's manifest on the way, and
// the whole image is read again at the end. Errors: FAILED_PRECONDITION (no
// pulled artifact, a file is missing, the layout is something else), DATA_LOSS
// (a file is not what the manifest says, or what was read again is wrong).
absl::StatusOr<OciImage> WriteOciLayout(const OciOptions& options);

// Reads the image `tag` of a layout and checks every size and sha256, and what
// the image specification asks of index, manifest and config. DATA_LOSS says
// what is wrong.
absl::StatusOr<OciImage> VerifyOciLayout(const std::string& layout, const std::string& tag);

}  // namespace quantry::cli
