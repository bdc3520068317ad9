#include "worker/engine/pipeline/model_card.h"

#include <gtest/gtest.h>

#include "worker/engine/base/file.h"
#include "worker/engine/pipeline/report.h"
#include "worker/engine/pipeline/testing/report_fixture.h"
#include "worker/engine/testing/temp_dir.h"

namespace quantry::engine {
namespace {

std::string Card(const Manifest& manifest, size_t output = 0) {
  const auto report = ReportJson(ParseJob(test::FinishedJobJson()), manifest);
  return ModelCard(report, report.at("outputs").at(output));
}

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ModelCard, FrontMatterNamesModelMethodAndBits) {
  Manifest manifest = test::FinishedManifest();
  manifest.base_model = "org/name";
  const std::string card = Card(manifest);
  EXPECT_EQ(card.substr(0, card.find("\n# ")),
            "---\nbase_model: \"org/name\"\nbase_model_relation: quantized\n"
            "library_name: quantry\npipeline_tag: text-generation\n"
            "tags:\n- \"quantry\"\n- \"awq\"\n- \"3-bit\"\n---\n");
  const std::string dense = Card(manifest, 1);
  EXPECT_TRUE(Has(dense, "library_name: transformers\n"));
  EXPECT_TRUE(Has(dense, "- \"dense\"\n"));
  EXPECT_FALSE(Has(dense, "3-bit\"\n"));
  EXPECT_FALSE(Has(Card(test::FinishedManifest()), "base_model"));
}

TEST(ModelCard, NoOtherLibraryIsNamedForWhatItCannotRotate) {
  const struct {
    bool online;
    const char* library;
  } cases[] = {{false, "library_name: transformers\n"}, {true, "library_name: quantry\n"}};
  for (const auto& c : cases) {
    nlohmann::json json = test::FinishedJobJson();
    json["method"] = {{"quarot", {{"rotation", {{"online", c.online}}}}}};
    const auto report = ReportJson(ParseJob(json), test::FinishedManifest());
    EXPECT_EQ(report.at("rotation").at("online").get<bool>(), c.online);
    EXPECT_TRUE(Has(ModelCard(report, report.at("outputs").at(1)), c.library)) << c.library;
  }
  const auto plain = ReportJson(ParseJob(test::FinishedJobJson()), test::FinishedManifest());
  EXPECT_FALSE(plain.contains("rotation"));
}

TEST(ModelCard, ShowsFiguresAndTheCommand) {
  const std::string card = Card(test::FinishedManifest());
  for (const char* part :
       {"| quantized | 5 | × 1.2500 |", "Only quantry-engine loads it.", "quantry submit MODEL_DIR",
        "\"group_size\": 64", "| `model/config.json` | `aaaa", "75 %"}) {
    EXPECT_TRUE(Has(card, part)) << part;
  }
  EXPECT_TRUE(Has(card, "`calibration/a__b_<i>.txt`")) << "no name leaves its cell";
}

TEST(ModelCard, PreprocessingIsToldApart) {
  Manifest manifest = test::FinishedManifest();
  manifest.preprocessing = test::FinishedRestoration();
  EXPECT_TRUE(Has(Card(manifest), "| quantized by the first pass | 6 | × 1.5000 |"));
}

TEST(ModelCard, LeavesAnotherReadmeAlone) {
  const test::TempDir dir;
  EXPECT_EQ(CardName(dir.path()), "README.md");
  WriteFileAtomically(dir.File("README.md"), Card(test::FinishedManifest()));
  EXPECT_EQ(CardName(dir.path()), "README.md");
  WriteFileAtomically(dir.File("README.md"), "# the model's own\n");
  EXPECT_EQ(CardName(dir.path()), "README.quantry.md");
}

}  // namespace
}  // namespace quantry::engine
