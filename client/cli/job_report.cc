#include "client/cli/job_report.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "client/cli/artifact_file.h"
#include "client/cli/errors.h"
#include "client/cli/text.h"
#include "common/digest.h"
#include "common/errors.h"

namespace quantry::cli {
namespace {

namespace fs = std::filesystem;

constexpr char kReportJson[] = "report/report.json";
constexpr char kReportHtml[] = "report/report.html";
// A row a block: far beyond any.
constexpr int64_t kMaxReportBytes = 64 << 20;

// Can be no job's or artifact's name, so it has to be a folder.
bool IsPath(const std::string& source) {
  return source == "." || source == ".." ||
         (source.find('/') != std::string::npos && source.rfind("tenants/", 0) != 0);
}

absl::StatusOr<std::string> ReadLocal(const std::string& path) {
  std::error_code error;
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  std::ifstream in(path, std::ios::binary);
  if (error || !in) return absl::InvalidArgumentError(Cat("cannot read \"", path, "\""));
  if (size > kMaxManifestBytes) {
    return absl::InvalidArgumentError(
        Cat("\"", path, "\" has ", size, " bytes: wanted at most ", kMaxManifestBytes));
  }
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// Reads files of one artifact.
class Source {
 public:
  virtual ~Source() = default;
  virtual absl::StatusOr<std::string> Manifest() = 0;
  virtual absl::StatusOr<std::string> File(const v1::ArtifactFile& file) = 0;
  // A pulled folder may hold a part of the artifact.
  virtual bool Has(const std::string& path) = 0;
};

class FolderSource : public Source {
 public:
  explicit FolderSource(std::string folder) : folder_(std::move(folder)) {}

  absl::StatusOr<std::string> Manifest() override {
    if (Has(kManifestName)) return ReadLocal(Path(kManifestName));
    return WithNext(
        absl::InvalidArgumentError(Cat("wanted a job or the folder of an artifact, got \"", folder_,
                                       "\", which holds no manifest.json")),
        "`quantry pull JOB DIR` makes such a folder");
  }

  absl::StatusOr<std::string> File(const v1::ArtifactFile& file) override {
    absl::StatusOr<std::string> bytes = ReadLocal(Path(file.path()));
    if (!bytes.ok() || Sha256Hex(*bytes) == file.sha256()) return bytes;
    return WithNext(MakeError(Reason::kArtifactCorrupt,
                              Cat("\"", Path(file.path()), "\" has another sha256 than ",
                                  "manifest.json says, ", file.sha256()),
                              {{"path", file.path()}}),
                    "pull the artifact again");
  }

  bool Has(const std::string& path) override {
    std::error_code ignored;
    return fs::is_regular_file(Path(path), ignored);
  }

 private:
  std::string Path(const std::string& path) const { return Cat(folder_, "/", path); }

  std::string folder_;
};

class ServerSource : public Source {
 public:
  ServerSource(Connection& connection, v1::Artifact artifact)
      : connection_(connection), artifact_(std::move(artifact)) {}

  absl::StatusOr<std::string> Manifest() override {
    return FetchFile(connection_, artifact_.name(), kManifestName, artifact_.manifest_sha256(),
                     kMaxManifestBytes);
  }
  absl::StatusOr<std::string> File(const v1::ArtifactFile& file) override {
    return FetchFile(connection_, artifact_.name(), file.path(), file.sha256(), kMaxReportBytes);
  }
  bool Has(const std::string&) override { return true; }

 private:
  Connection& connection_;
  v1::Artifact artifact_;
};

// A file of the report; "" when the artifact (or what was pulled of it) has none.
absl::StatusOr<std::string> ReportFile(Source& source, const v1::Manifest& manifest,
                                       const std::string& path) {
  for (const v1::ArtifactFile& file : manifest.files()) {
    if (file.path() == path && source.Has(path)) return source.File(file);
  }
  return std::string();
}

absl::StatusOr<JobReport> Load(Source& source, const std::string& name, bool with_html) {
  const absl::StatusOr<std::string> bytes = source.Manifest();
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<v1::Manifest> manifest = ParseManifest(*bytes);
  if (!manifest.ok()) return manifest.status();
  JobReport report;
  report.source = name;
  report.manifest = *std::move(manifest);
  const auto json = ReportFile(source, report.manifest, kReportJson);
  if (!json.ok()) return json.status();
  report.report = Json::parse(*json, nullptr, false);
  if (report.report.is_discarded()) report.report = nullptr;
  if (!with_html) return report;
  absl::StatusOr<std::string> html = ReportFile(source, report.manifest, kReportHtml);
  if (!html.ok()) return html.status();
  report.html = *std::move(html);
  if (!report.html.empty()) return report;
  return WithNext(
      absl::InvalidArgumentError(Cat("--html: \"", name, "\" holds no ", kReportHtml,
                                     ": an older engine made it, or only a part of it was pulled")),
      "without --html the figures are printed");
}

}  // namespace

absl::StatusOr<JobReport> LoadJobReport(Context& context, const std::string& source,
                                        bool with_html) {
  FolderSource folder(source);
  if (IsPath(source) || folder.Has(kManifestName)) return Load(folder, source, with_html);
  Connection connection(context.env, context.global);
  const absl::StatusOr<std::string> name = FindArtifact(context, connection, source);
  if (!name.ok()) return name.status();
  absl::StatusOr<v1::Artifact> artifact = GetArtifact(connection, *name);
  if (!artifact.ok()) return artifact.status();
  ServerSource server(connection, *std::move(artifact));
  return Load(server, source, with_html);
}

}  // namespace quantry::cli
