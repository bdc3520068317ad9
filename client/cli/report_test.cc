#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/cli/testing/fake_server.h"
#include "client/cli/testing/run.h"

namespace quantry::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr char kReport[] =
    R"({"reproduction": {"command": "quantry submit MODEL_DIR --seed=0", "method": {"awq": {}}}})";
constexpr char kHtml[] =
    "<h1>a</h1>\n<!-- quantry:measured -->\nnothing\n<!-- /quantry:measured -->\n<p>b</p>\n";

v1::Manifest Figures(const char* method, double quantized, double loss) {
  v1::Manifest manifest;
  manifest.set_method(method);
  manifest.set_model_type("llama");
  manifest.set_device("cpu <of> a test");
  manifest.set_spec_json(R"({"seed": "7"})");
  manifest.set_peak_rss_bytes(123'000'000);
  manifest.mutable_timing()->set_run_s(3.5);
  (*manifest.mutable_timing()->mutable_stages_s())["STAGE_LOADING"] = 0.25;
  manifest.mutable_bits()->set_linears(4.25);
  v1::Quality* quality = manifest.mutable_quality();
  quality->mutable_perplexity()->set_dense(4);
  quality->mutable_perplexity()->set_quantized(quantized);
  quality->set_kl_divergence(0.5);
  for (int i = 0; i < 2; ++i) {
    v1::BlockReport* block = manifest.add_blocks();
    block->set_index(i);
    block->set_loss_rtn(8);
    block->set_loss_final(loss + i);
  }
  v1::ArtifactFile* input = manifest.add_inputs();
  input->set_path("model/config.json");
  input->set_sha256(std::string(64, 'a'));
  return manifest;
}

class ReportTest : public testing::Test {
 protected:
  ReportTest() { Publish(Figures("awq", 5, 2)); }

  void Publish(v1::Manifest figures) {
    server.figures = std::move(figures);
    server.Publish(kJob, {{"report/report.json", kReport},
                          {"report/report.html", kHtml},
                          {"dense/model.safetensors", "12345"}});
  }
  CliRun Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--server", server.address()});
    return RunForTest(arguments);
  }
  // The published artifact as a folder.
  std::string Pulled(const std::string& name) {
    EXPECT_EQ(Run({"pull", "my-job", folder / name}).code, 0);
    return folder / name;
  }

  FakeServer server;
  TempFolder folder;
};

TEST_F(ReportTest, AJobAndItsFolderTellTheSame) {
  const CliRun job = Run({"report", "my-job"});
  ASSERT_EQ(job.code, 0) << job.err;
  EXPECT_THAT(job.out, AllOf(HasSubstr("awq on llama"), HasSubstr("4 -> 5"), HasSubstr("3.5 s"),
                             HasSubstr("loading 0.2 s"), HasSubstr("BLOCK"), HasSubstr("123.0 MB"),
                             HasSubstr("quantry submit MODEL_DIR --seed=0")));
  EXPECT_THAT(job.out, Not(HasSubstr("queued")));
  const std::string pulled = Pulled("out");
  const CliRun local = RunForTest({"report", pulled});  // no server
  ASSERT_EQ(local.code, 0) << local.err;
  EXPECT_EQ(local.out.substr(local.out.find('\n')), job.out.substr(job.out.find('\n')));
}

TEST_F(ReportTest, Json) {
  const auto json = Run({"report", "my-job", "--output", "json"}).json();
  EXPECT_EQ(json["quality"]["perplexity"]["quantized"], 5);
  EXPECT_EQ(json["timing"]["stages_s"]["LOADING"], 0.25);
  EXPECT_EQ(json["spec"]["seed"], "7");
  EXPECT_EQ(json["peak_rss_bytes"], 123'000'000);
  EXPECT_EQ(json["reproduction"]["command"], "quantry submit MODEL_DIR --seed=0");
}

TEST_F(ReportTest, HtmlGetsTheRunsTimes) {
  const CliRun run = Run({"report", "my-job", "--html", folder / "r.html"});
  ASSERT_EQ(run.code, 0) << run.err;
  const std::string html = folder.Read("r.html");
  EXPECT_THAT(html, AllOf(HasSubstr("<h1>a</h1>"), HasSubstr("<p>b</p>"), HasSubstr("3.5 s"),
                          HasSubstr("cpu &lt;of&gt; a test"), Not(HasSubstr("nothing"))));
  EXPECT_EQ(Run({"report", "my-job", "--html", "/no/such/folder/x"}).code, 2);
  server.Publish(kJob, {{"dense/model.safetensors", "1"}});
  const CliRun none = Run({"report", "my-job", "--html", folder / "x.html"});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.err, HasSubstr("report/report.html"));
  EXPECT_EQ(Run({"report", "my-job"}).code, 0);
}

TEST_F(ReportTest, PreprocessingIsToldApart) {
  v1::Manifest manifest = Figures("ptq161", 9, 2);
  manifest.mutable_preprocessing()->set_updates(70);
  manifest.mutable_preprocessing()->set_perplexity_first_pass(11);
  manifest.mutable_preprocessing()->set_perplexity_restored(4.5);
  Publish(manifest);
  EXPECT_THAT(Run({"report", "my-job"}).out,
              AllOf(HasSubstr("70 updates"), HasSubstr("of the first pass 11")));
}

TEST_F(ReportTest, WhatHasNoReportSaysWhy) {
  server.jobs[kJob].clear_artifact();
  server.jobs[kJob].set_state(v1::JOB_STATE_RUNNING);
  const CliRun running = Run({"report", "my-job"});
  EXPECT_NE(running.code, 0);
  EXPECT_THAT(running.err, AllOf(HasSubstr("no artifact"), HasSubstr("quantry watch my-job")));
  EXPECT_EQ(Run({"report", "no-such-job"}).code, 4);
  const CliRun empty = RunForTest({"report", folder.path()});
  EXPECT_EQ(empty.code, 2);
  EXPECT_THAT(empty.err, HasSubstr("manifest.json"));
}

TEST_F(ReportTest, ChangedFilesAreRefused) {
  const std::string pulled = Pulled("out");
  folder.Write("out/report/report.json", "{}");
  const CliRun run = RunForTest({"report", pulled});
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, HasSubstr("ARTIFACT_CORRUPT"));
  folder.Write("out/manifest.json", "no json");
  EXPECT_EQ(RunForTest({"report", pulled}).code, 1);
}

TEST_F(ReportTest, ComparesAFolderWithAJob) {
  const std::string pulled = Pulled("rtn");
  Publish(Figures("awq", 4.5, 1));
  const CliRun run = Run({"compare", pulled, "my-job"});
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("perplexity, quantized"), HasSubstr("0.9"),
                             HasSubstr("loss of block 1"), HasSubstr("weights, dense")));
  EXPECT_THAT(run.out, Not(HasSubstr("note:")));
  const auto json = Run({"compare", pulled, "my-job", "--output", "json"}).json();
  EXPECT_EQ(json["ratios"]["perplexity_quantized"], 0.9);
  EXPECT_EQ(json["blocks"][0]["ratio"], 0.5);
  EXPECT_EQ(json["b"]["method"], "awq");
  EXPECT_TRUE(json["differences"].empty());
}

TEST_F(ReportTest, SaysWhatMakesFiguresDiffer) {
  const std::string pulled = Pulled("one");
  v1::Manifest other = Figures("awq", 4.5, 1);
  other.mutable_inputs(0)->set_sha256(std::string(64, 'b'));
  other.mutable_quality()->mutable_perplexity()->set_windows(3);
  other.mutable_preprocessing()->set_updates(1);
  other.set_compute_dtype("bfloat16");
  Publish(other);
  EXPECT_THAT(Run({"compare", pulled, "my-job"}).out,
              AllOf(HasSubstr("differ in model inputs"), HasSubstr("differ in evaluation windows"),
                    HasSubstr("differ in preprocessing"), HasSubstr("differ in type of products")));
  EXPECT_EQ(Run({"compare", pulled, "my-job", "--output", "json"}).json()["b"]["compute_dtype"],
            "bfloat16");
  EXPECT_THAT(Run({"report", "my-job"}).out, HasSubstr("of training steps in bfloat16"));
}

}  // namespace
}  // namespace quantry::cli
