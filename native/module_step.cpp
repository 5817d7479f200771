// The Python face of a step: epilogue.kernels.model_step.
#include "module.hpp"
#include "step.hpp"

namespace epilogue {
namespace {

// (weight, bias, width, eps, whether there is no mean); empty for none
Norm norm_of(nb::tuple x) {
    if (nb::len(x) == 0) return {};
    return {at<const float>(x[0]), at<const float>(x[1]), nb::cast<int>(x[2]), nb::cast<float>(x[3]), nb::cast<bool>(x[4])};
}

// (kind, numbers, bias, in, out), or the six things of quant_weight_of
Weights weights_of(Model& model, nb::tuple x) {
    if (nb::len(x) == 6) {
        model.quantised.push_back(quant_weight_of(x));
        return quant_weights(model.quantised.back());
    }
    return plain_weights(at<const void>(x[1]), Numbers(nb::cast<int>(x[0])), at<const float>(x[2]),
                         nb::cast<std::int64_t>(x[3]), nb::cast<std::int64_t>(x[4]));
}

Block block_of(Model& model, nb::tuple x) {
    return {norm_of(x[0]), norm_of(x[1]), norm_of(x[2]), norm_of(x[3]), weights_of(model, x[4]), weights_of(model, x[5]),
            weights_of(model, x[6]), weights_of(model, x[7])};
}

// (address, stride of layers, stride of heads)
template <class T>
Columns<T> columns_of(nb::tuple x) {
    return {at<T>(x[0]), nb::cast<std::int64_t>(x[1]), nb::cast<std::int64_t>(x[2])};
}

Text text_of(nb::tuple x) {
    return {columns_of<std::int64_t>(x[0]), columns_of<float>(x[1]), columns_of<float>(x[2]), nb::cast<std::int64_t>(x[3]),
            nb::cast<int>(x[4]), at<std::int64_t>(x[5]), at<double>(x[6])};
}

}  // namespace

void bind_step(nb::module_& m) {
    nb::class_<Model>(m, "Model")
        .def("__init__", [](Model* self, nb::tuple sizes, float clip, double scale, float logit_factor, nb::tuple addresses,
                            nb::list blocks, nb::tuple last, nb::tuple head) {
            new (self) Model{nb::cast<int>(sizes[0]), nb::cast<int>(sizes[1]), nb::cast<int>(sizes[2]),
                             nb::cast<int>(sizes[3]), clip, scale, logit_factor, at<const float>(addresses[0]),
                             at<const float>(addresses[1]), at<const float>(addresses[2]), {}, norm_of(last), {}, {}};
            for (nb::handle block : blocks) self->blocks.push_back(block_of(*self, nb::cast<nb::tuple>(block)));
            self->head = weights_of(*self, head);
        });
    m.def("run_step", [](const Model& model, std::uintptr_t ids, nb::list texts, nb::tuple keys, nb::tuple values,
                         nb::tuple bounds, double epsilon, std::uintptr_t x, std::uintptr_t logits, int threads,
                         const char* name) {
        Step step{at<const std::int64_t>(ids), {}, pool_of(keys), pool_of(values), {}, epsilon, at<float>(x),
                  at<float>(logits), threads};
        for (nb::handle text : texts) step.texts.push_back(text_of(nb::cast<nb::tuple>(text)));
        if (nb::len(bounds) > 0)
            step.bounds = {at<const float>(bounds[0]), at<const float>(bounds[1]), at<const float>(bounds[2]),
                           nb::cast<float>(bounds[3]), nullptr, 0};
        const Kernels& kernels = kernels_named(name);
        nb::gil_scoped_release release;
        return run_step(model, step, kernels);
    });
}

}  // namespace epilogue
