// Where a method's message contradicts the recipe it names. The engine's table
// of recipes comes as MethodDescription.recipes; nothing here knows one. Pure.
#pragma once

#include <string>
#include <vector>

#include "quantry/v1/method.pb.h"

namespace quantry {

struct RecipeConflict {
  std::string field;  // path in JobSpec: "method.tesseraq.grid.bits"
  std::string wanted;
  std::string got;
};

// `recipe` of the method that is set, of restore that of its first pass; "" when
// it names none.
std::string RecipeName(const v1::Method& method);

// The row of the recipe that the method names; nullptr when it names none, or
// none of `description`, which is the method's own.
const v1::RecipeDescription* FindRecipe(const v1::Method& method,
                                        const v1::MethodDescription& description);

// Empty when the recipe is known and nothing the message says contradicts it.
// A description without recipes, of an older engine, finds nothing.
std::vector<RecipeConflict> FindRecipeConflicts(const v1::Method& method,
                                                const v1::MethodDescription& description);

}  // namespace quantry
