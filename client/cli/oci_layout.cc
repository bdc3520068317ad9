#include "client/cli/oci_layout.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "client/cli/errors.h"
#include "client/cli/format.h"
#include "client/cli/hold.h"
#include "client/cli/names.h"
#include "client/cli/part_file.h"
#include "client/cli/pull.h"
#include "client/cli/safe_path.h"
#include "client/cli/text.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr char kLayoutVersion[] = "1.0.0";
constexpr char kIndexType[] = "application/vnd.oci.image.index.v1+json";
constexpr char kManifestType[] = "application/vnd.oci.image.manifest.v1+json";
constexpr char kModelManifest[] = "application/vnd.cncf.model.manifest.v1+json";
constexpr char kModelConfig[] = "application/vnd.cncf.model.config.v1+json";
constexpr char kWeight[] = "application/vnd.cncf.model.weight.v1.raw";
constexpr char kWeightConfig[] = "application/vnd.cncf.model.weight.config.v1.raw";
constexpr char kDoc[] = "application/vnd.cncf.model.doc.v1.raw";
constexpr char kFilePath[] = "org.cncf.model.filepath";
constexpr char kRefName[] = "org.opencontainers.image.ref.name";
constexpr char kCreated[] = "org.opencontainers.image.created";
constexpr char kArtifactManifest[] = "manifest.json";
constexpr char kManifestLayer[] = "quantry-manifest.json";  // what it is called in the image
constexpr size_t kMaxJsonBytes = 64 << 20;
constexpr size_t kMaxTagBytes = 255;
constexpr std::string_view kDigestPrefix = "sha256:";

absl::Status Corrupt(const std::string& path, const std::string& what) {
  return MakeError(Reason::kArtifactCorrupt, Cat("\"", path, "\": ", what), {{"path", path}});
}

bool EndsWith(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string BlobPath(const std::string& layout, const std::string& sha256) {
  return Cat(layout, "/blobs/sha256/", sha256);
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(kMaxJsonBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  if (in.bad() || text.empty() || text.size() > kMaxJsonBytes) {
    return Corrupt(path, "wanted a file of JSON, cannot read one");
  }
  return text;
}

// Whole or not at all, and only when it is not there already.
absl::Status WriteBlob(const std::string& target, const std::string& bytes) {
  absl::StatusOr<PartFile> part = PartFile::Open(target, Sha256Hex(bytes));
  if (!part.ok()) return part.status();
  if (absl::Status status = part->Reset(); !status.ok()) return status;
  if (absl::Status status = part->Append(bytes); !status.ok()) return status;
  return part->Commit();
}

absl::Status CopyBlob(const std::string& source, const OciLayer& layer, const std::string& layout) {
  const std::string target = BlobPath(layout, layer.sha256);
  const auto there = Sha256File(target);
  if (there.ok() && there->sha256 == layer.sha256) return absl::OkStatus();
  absl::StatusOr<PartFile> part = PartFile::Open(target, layer.sha256);
  if (!part.ok()) return part.status();
  if (absl::Status status = part->Reset(); !status.ok()) return status;
  std::ifstream in(source, std::ios::binary);
  std::vector<char> buffer(size_t{1} << 20);
  while (in) {
    in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    const auto got = static_cast<size_t>(in.gcount());
    if (absl::Status status = part->Append({buffer.data(), got}); !status.ok()) return status;
  }
  if (part->Matches(layer.size_bytes)) return part->Commit();
  part->Discard();
  return Corrupt(source,
                 Cat("wanted ", layer.size_bytes, " bytes with sha256 ", layer.sha256,
                     " as the artifact's manifest says, got something else; pull it again"));
}

Json Descriptor(const char* media_type, const std::string& sha256, int64_t size) {
  return {{"mediaType", media_type}, {"digest", Cat(kDigestPrefix, sha256)}, {"size", size}};
}

absl::StatusOr<v1::Manifest> ReadArtifactManifest(const std::string& folder) {
  const std::string path = Cat(folder, "/", kArtifactManifest);
  const auto found = LookAt(path);
  if (!found.ok()) return found.status();
  if (!fs::exists(*found)) {
    return WithNext(absl::FailedPreconditionError(Cat("wanted a pulled artifact, \"", folder,
                                                      "\" has no ", kArtifactManifest)),
                    "`quantry pull JOB DIR` first, or name the job");
  }
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  v1::Manifest manifest;
  google::protobuf::util::JsonParseOptions lenient;
  lenient.ignore_unknown_fields = true;
  if (google::protobuf::util::JsonStringToMessage(*text, &manifest, lenient).ok()) return manifest;
  return Corrupt(path, "wanted the JSON of an artifact's manifest");
}

// The output to export: its format and folder.
absl::StatusOr<v1::OutputSummary> ChooseOutput(const v1::Manifest& manifest,
                                               const std::string& format) {
  std::string have;
  for (const v1::OutputSummary& output : manifest.outputs()) {
    if (format.empty() || output.format() == format) return output;
    have += (have.empty() ? "" : ", ") + output.format();
  }
  return absl::InvalidArgumentError(Cat("--format: the artifact holds ",
                                        have.empty() ? "no outputs" : have, ", got \"", format,
                                        "\""));
}

// "260K", "1.1B": at most one decimal.
std::string ParameterText(int64_t parameters) {
  constexpr std::pair<double, char> kScales[] = {
      {1e15, 'Q'}, {1e12, 'T'}, {1e9, 'B'}, {1e6, 'M'}, {1e3, 'K'}};
  for (const auto& [scale, letter] : kScales) {
    if (static_cast<double>(parameters) < scale) continue;
    std::ostringstream text;
    text.precision(1);
    text << std::fixed << static_cast<double>(parameters) / scale;
    std::string number = text.str();
    if (EndsWith(number, ".0")) number.resize(number.size() - 2);
    return Cat(number, letter);
  }
  return Cat(parameters);
}

Json ConfigJson(const v1::Manifest& manifest, const v1::OutputSummary& output,
                const std::vector<OciLayer>& layers) {
  Json descriptor = {{"name", std::string(ShortId(manifest.job()))},
                     {"family", manifest.model_type()},
                     {"title", Cat(ShortId(manifest.job()), ", ", output.format())}};
  const std::string created = Rfc3339(manifest.create_time());
  if (manifest.has_create_time() && !created.empty()) descriptor["createdAt"] = created;
  Json diff_ids = Json::array();
  for (const OciLayer& layer : layers) diff_ids.push_back(Cat(kDigestPrefix, layer.sha256));
  return {{"descriptor", descriptor},
          {"config",
           {{"architecture", "transformer"},
            {"format", "safetensors"},
            {"paramSize", ParameterText(manifest.bits().parameters())},
            {"precision", Cat(Number(output.bits_per_weight(), 3), " bits a weight")},
            {"quantization", manifest.method()}}},
          {"modelfs", {{"type", "layers"}, {"diffIds", diff_ids}}}};
}

Json LayersJson(const std::vector<OciLayer>& layers) {
  Json list = Json::array();
  for (const OciLayer& layer : layers) {
    Json row = Descriptor(layer.media_type.c_str(), layer.sha256, layer.size_bytes);
    row["annotations"] = {{kFilePath, layer.path}};
    list.push_back(std::move(row));
  }
  return list;
}

// The layers in the order of their paths, with where each file lies now.
absl::StatusOr<std::map<std::string, std::pair<OciLayer, std::string>>> FindLayers(
    const v1::Manifest& manifest, const v1::OutputSummary& output, const std::string& folder) {
  const auto files = ChooseFiles(manifest, {.folder = folder, .format = output.format()});
  if (!files.ok()) return files.status();
  std::map<std::string, std::pair<OciLayer, std::string>> layers;
  for (const v1::ArtifactFile& file : *files) {
    const std::string path =
        output.path().empty() ? file.path() : file.path().substr(output.path().size() + 1);
    const auto source = JoinBelow(folder, file.path());
    if (!source.ok()) return source.status();
    layers[path] = {{path, OciMediaType(path), file.sha256(), file.size_bytes()}, *source};
  }
  const std::string own = Cat(folder, "/", kArtifactManifest);
  const auto digest = Sha256File(own);
  if (!digest.ok()) return digest.status();
  layers[kManifestLayer] = {{kManifestLayer, kDoc, digest->sha256, digest->size_bytes}, own};
  return layers;
}

// An empty folder, or a layout already.
absl::StatusOr<Json> OpenIndex(const std::string& layout) {
  Json empty = {{"schemaVersion", 2}, {"mediaType", kIndexType}, {"manifests", Json::array()}};
  std::error_code error;
  const auto there = LookAt(layout);
  if (!there.ok()) return there.status();
  if (!fs::exists(*there) || fs::is_empty(layout, error)) return empty;
  const auto begun = LookAt(layout + "/oci-layout");
  if (!begun.ok()) return begun.status();
  if (!fs::exists(*begun)) {
    return WithNext(absl::FailedPreconditionError(
                        Cat("\"", layout, "\" is there already and is no OCI image layout")),
                    "export into another folder");
  }
  const auto written = LookAt(layout + "/index.json");
  if (!written.ok()) return written.status();
  if (!fs::exists(*written)) return empty;  // broken off before
  const auto text = ReadText(layout + "/index.json");
  if (!text.ok()) return text.status();
  Json index = Json::parse(*text, nullptr, false);
  if (index.is_object() && index.contains("manifests") && index["manifests"].is_array()) {
    return index;
  }
  return Corrupt(layout + "/index.json", "wanted an image index");
}

// What a file says, which may be anything: null, "" and 0 stand for what is not there.
const Json& Field(const Json& json, const char* name) {
  static const Json none;
  if (!json.is_object()) return none;
  const auto found = json.find(name);
  return found == json.end() ? none : *found;
}

std::string Text(const Json& json, const char* name) {
  const Json& field = Field(json, name);
  return field.is_string() ? field.get<std::string>() : "";
}

int64_t Integer(const Json& json, const char* name) {
  const Json& field = Field(json, name);
  return field.is_number_integer() ? field.get<int64_t>() : 0;
}

bool HasTag(const Json& descriptor, const std::string& tag) {
  return Text(Field(descriptor, "annotations"), kRefName) == tag;
}

void SetTag(const std::string& tag, Json descriptor, Json& index) {
  descriptor["annotations"] = {{kRefName, tag}};
  Json manifests = Json::array();
  for (const Json& row : index["manifests"]) {
    if (!HasTag(row, tag)) manifests.push_back(row);
  }
  manifests.push_back(std::move(descriptor));
  index["manifests"] = std::move(manifests);
}

// Other exports into the layout wait meanwhile: what they wrote stays.
absl::Status PutTag(const std::string& layout, const std::string& tag, Json descriptor) {
  const UniqueFd held = WaitAndHold(layout);
  auto index = OpenIndex(layout);
  if (!index.ok()) return index.status();
  SetTag(tag, std::move(descriptor), *index);
  return WriteBlob(layout + "/index.json", index->dump(2) + "\n");
}

// The blob a descriptor names, checked; JSON when asked for.
absl::StatusOr<FileDigest> CheckBlob(const std::string& layout, const Json& descriptor) {
  const std::string digest = Text(descriptor, "digest");
  const std::string sha256 =
      digest.rfind(kDigestPrefix, 0) == 0 ? digest.substr(kDigestPrefix.size()) : "";
  if (!IsSha256Hex(sha256) || Text(descriptor, "mediaType").empty() ||
      !Field(descriptor, "size").is_number_integer()) {
    return Corrupt(layout, "a descriptor without mediaType, digest and size");
  }
  const std::string path = BlobPath(layout, sha256);
  const auto found = Sha256File(path);
  if (!found.ok()) return found.status();
  const int64_t size = Integer(descriptor, "size");
  if (found->sha256 == sha256 && found->size_bytes == size) return *found;
  return Corrupt(path, Cat("wanted ", size, " bytes of this sha256"));
}

absl::StatusOr<Json> ReadBlob(const std::string& layout, const Json& descriptor) {
  const auto digest = CheckBlob(layout, descriptor);
  if (!digest.ok()) return digest.status();
  const auto text = ReadText(BlobPath(layout, digest->sha256));
  if (!text.ok()) return text.status();
  Json json = Json::parse(*text, nullptr, false);
  if (json.is_object()) return json;
  return Corrupt(BlobPath(layout, digest->sha256), "wanted a JSON object");
}

absl::StatusOr<Json> ReadJson(const std::string& path) {
  const auto text = ReadText(path);
  if (!text.ok()) return text.status();
  Json json = Json::parse(*text, nullptr, false);
  if (json.is_object()) return json;
  return Corrupt(path, "wanted a JSON object");
}

absl::StatusOr<Json> FindTag(const std::string& layout, const std::string& tag) {
  const auto version = ReadJson(layout + "/oci-layout");
  if (!version.ok()) return version.status();
  if (Text(*version, "imageLayoutVersion") != kLayoutVersion) {
    return Corrupt(layout + "/oci-layout", Cat("wanted imageLayoutVersion ", kLayoutVersion));
  }
  const auto index = ReadJson(layout + "/index.json");
  if (!index.ok()) return index.status();
  if (Integer(*index, "schemaVersion") != 2) {
    return Corrupt(layout + "/index.json", "wanted schemaVersion 2");
  }
  for (const Json& row : Field(*index, "manifests")) {
    if (HasTag(row, tag)) return row;
  }
  return Corrupt(layout + "/index.json", Cat("no image has the tag \"", tag, "\""));
}

absl::Status CheckImageManifest(const std::string& layout, const Json& manifest) {
  const Json& layers = Field(manifest, "layers");
  if (Integer(manifest, "schemaVersion") != 2 || Text(manifest, "mediaType") != kManifestType ||
      Text(manifest, "artifactType") != kModelManifest || !layers.is_array() || layers.empty()) {
    return Corrupt(layout, "the image manifest lacks what the specification asks for");
  }
  const Json& descriptor = Field(manifest, "config");
  const auto config = ReadBlob(layout, descriptor);
  if (!config.ok()) return config.status();
  const Json& diff_ids = Field(Field(*config, "modelfs"), "diffIds");
  if (Text(descriptor, "mediaType") == kModelConfig && config->contains("descriptor") &&
      config->contains("config") && diff_ids.size() == layers.size()) {
    return absl::OkStatus();
  }
  return Corrupt(layout, "the model's config lacks what ModelPack asks for");
}

}  // namespace

std::string OciMediaType(const std::string& path) {
  if (EndsWith(path, ".safetensors")) return kWeight;
  const std::string name = path.substr(path.rfind('/') + 1);
  if (EndsWith(name, ".md") || name.rfind("LICENSE", 0) == 0) return kDoc;
  return kWeightConfig;
}

absl::Status CheckOciTag(const std::string& tag) {
  constexpr std::string_view kFirst =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  const std::string all = Cat(kFirst, "-._:@/+");
  if (!tag.empty() && tag.size() <= kMaxTagBytes &&
      kFirst.find(tag.front()) != std::string_view::npos &&
      kFirst.find(tag.back()) != std::string_view::npos &&
      tag.find_first_not_of(all) == std::string::npos) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      Cat("--tag: wanted letters, digits and -._:@/+ between them, got \"", tag, "\""));
}

absl::Status CheckOciLayout(const std::string& layout) { return OpenIndex(layout).status(); }

absl::StatusOr<OciImage> WriteOciLayout(const OciOptions& options) {
  if (absl::Status status = CheckOciTag(options.tag); !status.ok()) return status;
  const auto artifact = ReadArtifactManifest(options.folder);
  if (!artifact.ok()) return artifact.status();
  const auto output = ChooseOutput(*artifact, options.format);
  if (!output.ok()) return output.status();
  const auto found = FindLayers(*artifact, *output, options.folder);
  if (!found.ok()) return found.status();
  if (absl::Status status = CheckOciLayout(options.layout); !status.ok()) return status;
  absl::Status status = WriteBlob(options.layout + "/oci-layout",
                                  Json({{"imageLayoutVersion", kLayoutVersion}}).dump());
  std::vector<OciLayer> layers;
  for (const auto& [path, layer] : *found) {
    if (status.ok()) status = CopyBlob(layer.second, layer.first, options.layout);
    layers.push_back(layer.first);
  }
  const std::string config = ConfigJson(*artifact, *output, layers).dump();
  if (status.ok()) status = WriteBlob(BlobPath(options.layout, Sha256Hex(config)), config);
  Json manifest = {
      {"schemaVersion", 2},
      {"mediaType", kManifestType},
      {"artifactType", kModelManifest},
      {"config", Descriptor(kModelConfig, Sha256Hex(config), static_cast<int64_t>(config.size()))},
      {"layers", LayersJson(layers)}};
  if (artifact->has_create_time()) {
    manifest["annotations"] = {{kCreated, Rfc3339(artifact->create_time())}};
  }
  const std::string text = manifest.dump();
  if (status.ok()) status = WriteBlob(BlobPath(options.layout, Sha256Hex(text)), text);
  Json descriptor = Descriptor(kManifestType, Sha256Hex(text), static_cast<int64_t>(text.size()));
  descriptor["artifactType"] = kModelManifest;
  if (status.ok()) status = PutTag(options.layout, options.tag, std::move(descriptor));
  if (!status.ok()) return status;
  auto image = VerifyOciLayout(options.layout, options.tag);
  if (image.ok()) image->format = output->format();
  return image;
}

absl::StatusOr<OciImage> VerifyOciLayout(const std::string& layout, const std::string& tag) {
  const auto descriptor = FindTag(layout, tag);
  if (!descriptor.ok()) return descriptor.status();
  const auto manifest = ReadBlob(layout, *descriptor);
  if (!manifest.ok()) return manifest.status();
  if (absl::Status status = CheckImageManifest(layout, *manifest); !status.ok()) return status;
  OciImage image;
  image.manifest_sha256 = descriptor->at("digest").get<std::string>().substr(kDigestPrefix.size());
  image.manifest_bytes = descriptor->at("size").get<int64_t>();
  for (const Json& row : manifest->at("layers")) {
    const auto digest = CheckBlob(layout, row);
    if (!digest.ok()) return digest.status();
    image.layers.push_back({Text(Field(row, "annotations"), kFilePath), Text(row, "mediaType"),
                            digest->sha256, digest->size_bytes});
    image.bytes += digest->size_bytes;
  }
  return image;
}

}  // namespace quantry::cli
