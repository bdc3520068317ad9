#include "worker/engine/pipeline/report_html.h"

#include <gtest/gtest.h>

#include "worker/engine/pipeline/report.h"
#include "worker/engine/pipeline/report_text.h"
#include "worker/engine/pipeline/testing/report_fixture.h"

namespace quantry::engine {
namespace {

using Json = nlohmann::ordered_json;

std::string Html(const Manifest& manifest) {
  return ReportHtml(ReportJson(ParseJob(test::FinishedJobJson()), manifest), "");
}

bool HtmlHas(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ReportHtml, ShowsFigures) {
  const std::string html = Html(test::FinishedManifest());
  for (const char* part :
       {"4 → 5", "× 1.2500", "75 %", "0.125 nats", "45 tokens in 3 windows of 16",
        "Only quantry-engine loads it.", "500 B", "--threads 2", "loss_init",
        "<title>llama, awq, 3 bits, group size 64</title>"}) {
    EXPECT_TRUE(HtmlHas(html, part)) << part;
  }
  EXPECT_FALSE(HtmlHas(html, "first pass"));
  EXPECT_TRUE(HtmlHas(html, std::string(kMeasuredBegin)));
  EXPECT_TRUE(HtmlHas(html, std::string(kMeasuredEnd)));
}

TEST(ReportHtml, EscapesEveryText) {
  const std::string evil = "</pre><script>alert('1')</script>\"&";
  Manifest manifest = test::FinishedManifest();
  manifest.model_type = evil;
  manifest.inputs[0].path = evil;
  manifest.outputs[0].compatibility = evil;
  manifest.blocks[0].metrics[evil] = 1;
  const std::string html = Html(manifest);
  EXPECT_FALSE(HtmlHas(html, "<script"));
  EXPECT_FALSE(HtmlHas(html, "</pre><"));
  EXPECT_TRUE(HtmlHas(html, "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
}

TEST(ReportHtml, LoadsNothingAndRunsNothing) {
  const std::string html = Html(test::FinishedManifest());
  for (const char* part : {"http:", "https:", "<script", "src=", "href=", "url(", "@import"}) {
    EXPECT_FALSE(HtmlHas(html, part)) << part;
  }
  EXPECT_TRUE(HtmlHas(html, "default-src 'none'"));
}

TEST(ReportHtml, TellsPreprocessingApart) {
  Manifest manifest = test::FinishedManifest();
  manifest.preprocessing = test::FinishedRestoration();
  const std::string html = Html(manifest);
  for (const char* part :
       {"quantized by the first pass", "dense, restored by preprocessing",
        "perplexity, dense → quantized after preprocessing", "× 1.5000", "× 1.1250",
        "<title>llama, awq, 3 bits, group size 64, after preprocessing</title>"}) {
    EXPECT_TRUE(HtmlHas(html, part)) << part;
  }
}

TEST(ReportHtml, TellsTheRecipe) {
  nlohmann::json json = test::FinishedJobJson();
  json["method"] = {{"ptq161", {{"recipe", "ptq161-plus"}}}};
  const Json report = ReportJson(ParseJob(json), test::FinishedManifest());
  EXPECT_TRUE(HtmlHas(Headline(report), "llama, ptq161 (ptq161-plus), ")) << Headline(report);
  EXPECT_FALSE(report.contains("grid"));
  EXPECT_EQ(report.at("reference_grid").at("bits"), 2) << "what loss_rtn is of";
  json["method"] = {{"restore", {{"first_pass", {{"recipe", "ptq161-plus"}}}}}};
  json["outputs"] = {{{"format", "OUTPUT_FORMAT_DENSE"}}};
  json["preprocessing"] = {{"lora", nlohmann::json::object()},
                           {"text", json["calibration"]["text"]},
                           {"sequence_length", 16}};
  const Json restored = ReportJson(ParseJob(json), test::FinishedManifest());
  EXPECT_TRUE(HtmlHas(Headline(restored), "llama, restore (ptq161-plus), ")) << Headline(restored);
}

TEST(ReportHtml, GatesThatFailAreSaid) {
  nlohmann::json json = test::FinishedJobJson();
  json["quality_gate"] = {{"max_perplexity_ratio", 1.1}};
  Manifest manifest = test::FinishedManifest();
  const auto html = [&] { return ReportHtml(ReportJson(ParseJob(json), manifest), ""); };
  EXPECT_TRUE(HtmlHas(html(), "(quantized / dense ≤ 1.1): passed"));
  manifest.quality_gate_failed = true;
  EXPECT_TRUE(HtmlHas(html(), "class=\"bad\">Quality gate (quantized / dense ≤ 1.1): FAILED"));
}

TEST(ReportHtml, JobsWithoutFiguresStillGetAPage) {
  Manifest manifest = test::FinishedManifest();
  manifest.quality.reset();
  const double none = std::numeric_limits<double>::quiet_NaN();
  manifest.blocks = {test::FinishedBlock(0, none, none)};
  const std::string html = Html(manifest);
  EXPECT_TRUE(HtmlHas(html, "Not measured"));
  EXPECT_FALSE(HtmlHas(html, "nan"));
  manifest.quality = EvaluationResult();
  manifest.quality->perplexity_quantized = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(HtmlHas(Html(manifest), "not finite"));
}

TEST(ReportText, Sizes) {
  EXPECT_EQ(ShortBytes(999), "999 B");
  EXPECT_EQ(ShortBytes(1000), "1.0 kB");
  EXPECT_EQ(ShortBytes(1.4e9), "1.4 GB");
  EXPECT_EQ(ShortNumber(std::numeric_limits<double>::quiet_NaN()), "not finite");
}

}  // namespace
}  // namespace quantry::engine
