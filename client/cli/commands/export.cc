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

// Beside the layout: a pull fills it, and it goes when all is exported.
std::string PullFolder(const std::string& layout) { return layout + ".pull"; }

absl::Status PullSource(Context& context, const std::string& source, const OciOptions& options,
                        StatusLine& line) {
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
  const std::string folder = PullFolder(options.layout);
  return PullArtifact(connection, line, *name, {.folder = folder, .format = format}).status();
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
  const bool pulled = fs::is_directory(arguments.source);
  options.folder = arguments.source;
  if (!pulled) {
    absl::Status status = PullSource(context, arguments.source, options, line);
    if (!status.ok()) return status;
    options.folder = PullFolder(options.layout);
  }
  const auto image = WriteOciLayout(options);
  if (!image.ok()) return image.status();
  std::error_code ignored;
  if (!pulled) fs::remove_all(options.folder, ignored);
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
