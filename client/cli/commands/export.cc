#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <ostream>

#include "client/cli/artifact_file.h"
#include "client/cli/commands/commands.h"
#include "client/cli/format.h"
#include "client/cli/json.h"
#include "client/cli/oci_layout.h"
#include "client/cli/pull.h"
#include "client/cli/safe_path.h"
#include "client/cli/spec.h"
#include "client/cli/text.h"
#include "client/cli/wait.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;

struct ExportArguments {
  std::string source;  // folder of a pulled artifact, or a job
  OciOptions options;
};

// An artifact pulled to be exported.
struct PulledSource {
  std::string folder;
  v1::Manifest manifest;
  PullFolder held = {};  // until all is exported
};

// Beside the layout and of this artifact alone, so that a pull that broke off goes on there.
std::string FolderOf(const std::string& layout, const std::string& artifact) {
  return Cat(layout, ".", artifact.substr(artifact.rfind('/') + 1), ".pull");
}

// When all is exported: what the pull left, and nothing that somebody else put there.
void RemovePulled(const PulledSource& pulled) {
  std::error_code ignored;
  const fs::path folder = pulled.folder;
  fs::remove(folder / "manifest.json", ignored);
  for (const v1::ArtifactFile& file : pulled.manifest.files()) {
    fs::remove(folder / file.path(), ignored);
    for (fs::path below = fs::path(file.path()).parent_path(); !below.empty();
         below = below.parent_path()) {
      fs::remove(folder / below, ignored);  // if it is empty
    }
  }
  fs::remove(folder, ignored);
}

absl::StatusOr<PulledSource> PullSource(Context& context, const std::string& source,
                                        const OciOptions& options, StatusLine& line) {
  if (absl::Status status = CheckOciLayout(options.layout); !status.ok()) return status;
  Connection connection(context.env, context.global);
  const auto name = FindArtifact(context, connection, source);
  if (!name.ok()) return name.status();
  std::string format = options.format;
  if (format.empty()) {
    v1::GetArtifactRequest request;
    request.set_name(*name);
    v1::Artifact artifact;
    absl::Status status = connection.Call(connection.artifacts(),
                                          &Connection::Artifacts::GetArtifact, request, &artifact);
    if (!status.ok()) return status;
    if (!artifact.manifest().outputs().empty()) format = artifact.manifest().outputs(0).format();
  }
  const std::string folder = FolderOf(options.layout, *name);
  auto pulled = PullArtifact(connection, line, *name, {.folder = folder, .format = format});
  if (!pulled.ok()) return pulled.status();
  return PulledSource{
      .folder = folder, .manifest = pulled->manifest, .held = std::move(pulled->held)};
}

void Print(Context& context, const OciOptions& options, const OciImage& image) {
  const std::string digest = Cat("sha256:", image.manifest_sha256);
  if (!context.global.json()) {
    context.env.out << options.layout << ":" << options.tag << "  " << digest << "\n";
    return;
  }
  Json layers = Json::array();
  for (const OciLayer& layer : image.layers) {
    layers.push_back({{"path", layer.path},
                      {"media_type", layer.media_type},
                      {"digest", Cat("sha256:", layer.sha256)},
                      {"size_bytes", layer.size_bytes}});
  }
  const Json json = {{"layout", options.layout},  {"tag", options.tag},
                     {"manifest_digest", digest}, {"format", image.format},
                     {"bytes", image.bytes},      {"layers", layers},
                     {"verified", true}};
  context.env.out << Dump(json, context.env.out_is_terminal);
}

absl::StatusOr<ExitCode> RunExport(Context& context, const ExportArguments& arguments) {
  if (absl::Status status = CheckOciTag(arguments.options.tag); !status.ok()) return status;
  StatusLine line(context.env, context.global.quiet);
  OciOptions options = arguments.options;
  while (options.layout.size() > 1 && options.layout.back() == '/') options.layout.pop_back();
  const auto source = LookAt(arguments.source);
  if (!source.ok()) return source.status();
  options.folder = arguments.source;
  PulledSource pulled;
  if (!fs::is_directory(*source)) {
    auto done = PullSource(context, arguments.source, options, line);
    if (!done.ok()) return done.status();
    pulled = *std::move(done);
    options.folder = pulled.folder;
  }
  const auto image = WriteOciLayout(options);
  if (!image.ok()) return image.status();
  if (!pulled.folder.empty()) RemovePulled(pulled);
  line.Say(Cat("exported and verified ", image->layers.size(), " layers, ", Bytes(image->bytes)));
  Print(context, options, *image);
  return ExitCode::kOk;
}

}  // namespace

void AddExport(CLI::App& app, Action& chosen) {
  CLI::App* command =
      app.add_subcommand("export", "Write an artifact as an OCI image layout, for registries");
  auto arguments = std::make_shared<ExportArguments>();
  OciOptions& options = arguments->options;
  command
      ->add_option("SOURCE", arguments->source,
                   "Folder of a pulled artifact; or a job, or an artifact's uid or name, to pull "
                   "for it")
      ->required()
      ->type_name("JOB");
  command
      ->add_option("--oci-layout", options.layout,
                   "Folder of the layout; made when missing. Other tags in it stay")
      ->required()
      ->type_name("DIR");
  Choices(command->add_option("--format", options.format,
                              "Which output. Default: the artifact's first"),
          FormatNames());
  command->add_option("--tag", options.tag, "Name of the image in the layout. Default: latest")
      ->type_name("TAG");
  command->footer(
      "\nOne layer a file, with the media types of CNCF ModelPack. Every file is checked against "
      "the\n"
      "artifact's manifest, and the layout is read again and checked at the end. The same "
      "artifact\n"
      "gives the same digests.\n\nExamples:\n"
      "  quantry export my-job --oci-layout ./my-model-oci --tag v1\n"
      "  oras cp --from-oci-layout ./my-model-oci:v1 registry.example.com/models/my-model:v1\n"
      "  quantry export ./my-model-w4 --oci-layout ./my-model-oci --format compressed-tensors\n");
  Bind(*command, chosen, [arguments](Context& context) { return RunExport(context, *arguments); });
}

}  // namespace quantry::cli
