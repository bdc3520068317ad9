#include "common/recipes.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

namespace quantry {
namespace {

v1::MethodDescription Tesseraq() {
  v1::MethodDescription description;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(
      R"(name: "tesseraq"
         recipes { name: "w2g128" bits: 2 group_size: 128 }
         recipes { name: "w4a4" bits: 4 group_size: -1 activation_bits: 4 }
         recipes { name: "plus" })",
      &description));
  return description;
}

v1::Method Parse(const std::string& text) {
  v1::Method method;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &method)) << text;
  return method;
}

TEST(RecipesTest, Conflicts) {
  const struct {
    const char* name;
    const char* method;
    std::string conflict;  // "field: wanted W, got G" of the only one; "" = none
  } cases[] = {
      {"no recipe", "tesseraq { grid { bits: 7 } }", ""},
      {"a method without recipes", "rtn { grid { bits: 3 } }", ""},
      {"no method", "", ""},
      {"everything left open", "tesseraq { recipe: 'w2g128' }", ""},
      {"the same said twice", "tesseraq { recipe: 'w2g128' grid { bits: 2 group_size: 128 } }", ""},
      {"a recipe for any grid", "tesseraq { recipe: 'plus' grid { bits: 3 group_size: 32 } }", ""},
      {"activations left open", "tesseraq { recipe: 'w2g128' activations { bits: 8 } }", ""},
      {"bits", "tesseraq { recipe: 'w2g128' grid { bits: 3 } }",
       "method.tesseraq.grid.bits: wanted 2, which recipe w2g128 has, or nothing, got 3"},
      {"group size", "tesseraq { recipe: 'w4a4' grid { group_size: 64 } }",
       "method.tesseraq.grid.group_size: wanted -1 (per channel), which recipe w4a4 has, or "
       "nothing, got 64"},
      {"activations", "tesseraq { recipe: 'w4a4' activations { bits: 16 } }",
       "method.tesseraq.activations.bits: wanted 4, which recipe w4a4 has, or nothing, got 16"},
      {"unknown", "tesseraq { recipe: 'best' grid { bits: 3 } }",
       "method.tesseraq.recipe: wanted one of w2g128, w4a4, plus, got 'best'"},
      {"of a first pass", "restore { first_pass { recipe: 'plus' } }", ""},
      {"of a first pass, unknown", "restore { first_pass { recipe: 'best' } }",
       "method.restore.first_pass.recipe: wanted one of w2g128, w4a4, plus, got 'best'"},
  };
  for (const auto& c : cases) {
    const auto conflicts = FindRecipeConflicts(Parse(c.method), Tesseraq());
    if (c.conflict.empty()) {
      EXPECT_TRUE(conflicts.empty()) << c.name;
      continue;
    }
    ASSERT_EQ(conflicts.size(), 1u) << c.name;
    EXPECT_EQ(conflicts[0].field + ": wanted " + conflicts[0].wanted + ", got " + conflicts[0].got,
              c.conflict)
        << c.name;
  }
}

TEST(RecipesTest, EveryContradictionIsFound) {
  const v1::Method method =
      Parse("tesseraq { recipe: 'w4a4' grid { bits: 2 group_size: 64 } activations { bits: 8 } }");
  EXPECT_EQ(FindRecipeConflicts(method, Tesseraq()).size(), 3u);
}

TEST(RecipesTest, AnOlderEngineNamesNoRecipes) {
  const v1::Method method = Parse("tesseraq { recipe: 'best' }");
  EXPECT_TRUE(FindRecipeConflicts(method, v1::MethodDescription()).empty());
  EXPECT_EQ(RecipeName(method), "best");
  EXPECT_EQ(FindRecipe(method, Tesseraq()), nullptr);
  EXPECT_EQ(FindRecipe(Parse("ptq161 { recipe: 'plus' }"), Tesseraq())->name(), "plus");
}

}  // namespace
}  // namespace quantry
