#include "common/recipes.h"
#include "common/utf8_prefix.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

namespace quantry {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr int kPerChannel = -1;

// The message of the method that is set, read by field names. Of restore, whose
// recipes are those of its first pass, that.
class Options {
 public:
  explicit Options(const v1::Method& method) {
    Enter(method, method.GetReflection()->GetOneofFieldDescriptor(
                      method, v1::Method::descriptor()->FindOneofByName("kind")));
    if (const FieldDescriptor* inner = Find("first_pass")) Enter(*message_, inner);
  }

  std::string path(const std::string& field) const { return path_ + "." + field; }
  std::string Text(const char* name) const {
    const FieldDescriptor* field = Find(name);
    if (field == nullptr || field->cpp_type() != FieldDescriptor::CPPTYPE_STRING) return "";
    return message_->GetReflection()->GetString(*message_, field);
  }
  // The default instance when the method has no such field.
  template <typename Type>
  const Type& Part(const char* name) const {
    const FieldDescriptor* field = Find(name);
    if (field == nullptr || field->message_type() != Type::descriptor()) {
      return Type::default_instance();
    }
    return static_cast<const Type&>(message_->GetReflection()->GetMessage(*message_, field));
  }

 private:
  void Enter(const Message& outer, const FieldDescriptor* field) {
    if (field == nullptr) return;
    path_ += "." + field->name();
    message_ = &outer.GetReflection()->GetMessage(outer, field);
  }

  const FieldDescriptor* Find(const char* name) const {
    return message_ == nullptr ? nullptr : message_->GetDescriptor()->FindFieldByName(name);
  }

  std::string path_ = "method";
  const Message* message_ = nullptr;
};

std::string Names(const v1::MethodDescription& description) {
  std::string names;
  for (const v1::RecipeDescription& row : description.recipes()) {
    names += (names.empty() ? "one of " : ", ") + row.name();
  }
  return names;
}

std::string GroupText(int group_size) {
  return group_size == kPerChannel ? "-1 (per channel)" : std::to_string(group_size);
}

}  // namespace

std::string RecipeName(const v1::Method& method) { return Options(method).Text("recipe"); }

const v1::RecipeDescription* FindRecipe(const v1::Method& method,
                                        const v1::MethodDescription& description) {
  const std::string name = RecipeName(method);
  for (const v1::RecipeDescription& row : description.recipes()) {
    if (!name.empty() && row.name() == name) return &row;
  }
  return nullptr;
}

std::vector<RecipeConflict> FindRecipeConflicts(const v1::Method& method,
                                                const v1::MethodDescription& description) {
  const Options options(method);
  const std::string name = options.Text("recipe");
  if (name.empty() || description.recipes().empty()) return {};
  const v1::RecipeDescription* recipe = FindRecipe(method, description);
  if (recipe == nullptr) {
    return {{options.path("recipe"), Names(description), "'" + Utf8Prefix(name, 64) + "'"}};
  }
  std::vector<RecipeConflict> conflicts;
  const auto check = [&](const std::string& field, int fixed, int given, std::string (*text)(int)) {
    if (fixed == 0 || given == 0 || given == fixed) return;
    conflicts.push_back({options.path(field),
                         text(fixed) + ", which recipe " + name + " has, or nothing", text(given)});
  };
  const auto plain = [](int value) { return std::to_string(value); };
  const auto& grid = options.Part<v1::WeightGrid>("grid");
  check("grid.bits", recipe->bits(), grid.bits(), plain);
  check("grid.group_size", recipe->group_size(), grid.group_size(), GroupText);
  check("activations.bits", recipe->activation_bits(),
        options.Part<v1::ActivationGrid>("activations").bits(), plain);
  return conflicts;
}

}  // namespace quantry
