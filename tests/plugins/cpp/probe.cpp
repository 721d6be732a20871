// Answers questions about the real library, one a line of standard input, so that pytest can hold it against ops.yaml:
//   ops                             name version namespace of every creator, separated by ";"
//   fields OP                       name, type and length of every field
//   formats OP INPUTS TYPE          POSITION/TYPE/FORMAT of what is accepted where the first input is TYPE
//   dims OP TYPE D,D,..;D,D,..;..   "ok" or what configurePlugin said, for all inputs and the output
//   shape OP D,D,..;D,D,..;..       the output's dimensions, for the inputs (and an output, ignored)
//   workspace OP TYPE D,D,..;.. [D]  bytes, for a first dimension of the first tensor from D on
#include <iostream>
#include <sstream>

#include "library.h"

namespace {

using namespace library;

constexpr int32_t kEnumerators = 16; // of DataType and TensorFormat: more than there are, so that new ones are refused

std::vector<Dims> readDims(std::string const& text) {
    std::vector<Dims> all;
    std::istringstream tensors(text);
    for (std::string tensor; std::getline(tensors, tensor, ';');) {
        Dims dims{};
        std::istringstream values(tensor);
        for (std::string value; std::getline(values, value, ',');) {
            dims.d[dims.nbDims++] = std::stoll(value);
        }
        all.push_back(dims);
    }
    return all;
}

std::vector<DynamicPluginTensorDesc> tensorsOf(std::vector<Dims> const& dims, DataType type) {
    std::vector<DynamicPluginTensorDesc> tensors(dims.size());
    for (size_t i = 0; i < dims.size(); ++i) {
        tensors[i].desc.type = type;
        tensors[i].desc.format = TensorFormat::kLINEAR;
        tensors[i].desc.dims = tensors[i].min = tensors[i].opt = tensors[i].max = dims[i];
    }
    return tensors;
}

std::string ops(Library const& lib) {
    std::string text;
    for (IPluginCreatorV3One* const creator : lib.creators) {
        text += std::string(creator->getPluginName()) + " " + creator->getPluginVersion() + " " +
                creator->getPluginNamespace() + ";";
    }
    return text;
}

std::string fields(Library const& lib, std::istream& line) {
    std::string op, text;
    line >> op;
    PluginFieldCollection const& found = *lib.creator(op).getFieldNames();
    for (int32_t i = 0; i < found.nbFields; ++i) {
        PluginField const& field = found.fields[i];
        text += std::string(field.name) + " " + std::to_string(static_cast<int32_t>(field.type)) + " " +
                std::to_string(field.length) + ";";
    }
    return text;
}

std::string formats(Library const& lib, std::istream& line) {
    std::string op, text;
    int32_t inputs = 0, base = 0;
    line >> op >> inputs >> base;
    auto const plugin = lib.create(op);
    for (int32_t pos = -1; pos <= inputs + 1; ++pos) {
        for (int32_t type = 0; type < kEnumerators; ++type) {
            for (int32_t format = 0; format < kEnumerators; ++format) {
                auto tensors = tensorsOf(std::vector<Dims>(static_cast<size_t>(inputs + 3)), DataType(base));
                auto& desc = tensors[static_cast<size_t>(pos + 1)].desc; // the first stands before position 0
                desc.type = DataType(type);
                desc.format = TensorFormat(format);
                if (build(*plugin)->supportsFormatCombination(pos, &tensors[1], inputs, 1)) {
                    text += std::to_string(pos) + "/" + std::to_string(type) + "/" + std::to_string(format) + " ";
                }
            }
        }
    }
    return text;
}

std::string dims(Library& lib, std::istream& line) {
    std::string op, text;
    int32_t type = 0;
    line >> op >> type >> text;
    auto const plugin = lib.create(op);
    auto const tensors = tensorsOf(readDims(text), DataType(type));
    std::vector<PluginTensorDesc> plain;
    for (auto const& tensor : tensors) {
        plain.push_back(tensor.desc);
    }
    int32_t const inputs = static_cast<int32_t>(tensors.size()) - 1;
    bool const configured = build(*plugin)->configurePlugin(tensors.data(), inputs, &tensors.back(), 1) == 0;
    std::string const said = lib.logger.take();
    bool const changed = runtime(*plugin)->onShapeChange(plain.data(), inputs, &plain.back(), 1) == 0;
    if (lib.logger.take() != said || configured != changed || configured != said.empty()) {
        return "configurePlugin and onShapeChange disagree";
    }
    return configured ? "ok" : said.substr(0, said.find('\n'));
}

class Expression final : public IDimensionExpr {
  public:
    int64_t value = 0;
};
class Builder final : public IExprBuilder {};

std::string shape(Library& lib, std::istream& line) {
    std::string op, text;
    line >> op >> text;
    auto const given = readDims(text);
    std::vector<DimsExprs> inputs(given.size() - 1);
    std::vector<std::unique_ptr<Expression>> expressions;
    for (size_t i = 0; i < inputs.size(); ++i) {
        inputs[i].nbDims = given[i].nbDims;
        for (int32_t axis = 0; axis < given[i].nbDims; ++axis) {
            expressions.push_back(std::make_unique<Expression>());
            expressions.back()->value = given[i].d[axis];
            inputs[i].d[axis] = expressions.back().get();
        }
    }
    Builder builder;
    DimsExprs output{};
    auto const plugin = lib.create(op);
    int32_t const count = static_cast<int32_t>(inputs.size());
    if (build(*plugin)->getOutputShapes(inputs.data(), count, nullptr, 0, &output, 1, builder) != 0) {
        return lib.logger.take();
    }
    std::string result;
    for (int32_t axis = 0; axis < output.nbDims; ++axis) {
        result += (axis ? "," : "") + std::to_string(static_cast<Expression const*>(output.d[axis])->value);
    }
    return result;
}

std::string workspace(Library const& lib, std::istream& line) {
    std::string op, text;
    int32_t type = 0;
    line >> op >> type >> text;
    auto tensors = tensorsOf(readDims(text), DataType(type));
    if (int64_t smallest = 0; line >> smallest) {
        tensors.front().min.d[0] = smallest;
    }
    int32_t const inputs = static_cast<int32_t>(tensors.size()) - 1;
    return std::to_string(build(*lib.create(op))->getWorkspaceSize(tensors.data(), inputs, &tensors.back(), 1));
}

} // namespace

int main(int argc, char** argv) {
    Library lib(argc, argv);
    for (std::string text; std::getline(std::cin, text);) {
        std::istringstream line(text);
        std::string question;
        line >> question;
        std::string const answer = question == "ops"         ? ops(lib)
                                   : question == "fields"    ? fields(lib, line)
                                   : question == "formats"   ? formats(lib, line)
                                   : question == "dims"      ? dims(lib, line)
                                   : question == "shape"     ? shape(lib, line)
                                   : question == "workspace" ? workspace(lib, line)
                                                             : "unknown question";
        std::cout << answer << std::endl;
        lib.logger.take();
    }
    return 0;
}
