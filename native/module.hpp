// What the Python face of every operation needs: addresses and sizes, checked by whoever calls.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "reach_decode.hpp"

namespace epilogue {

namespace nb = nanobind;

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
T* at(nb::handle address) {
    return at<T>(nb::cast<std::uintptr_t>(address));
}

// Of this name; the best if it is empty. An instruction set that the processor lacks is an error.
const Kernels& kernels_named(const char* name);

// (data, scale, zero, number of pages, storage)
Pool pool_of(nb::tuple x);

// (codes, scales, zeros, order, bias, (in, out, groups, group size, bits, kind of scales))
QuantWeight quant_weight_of(nb::tuple x);

void bind_step(nb::module_& m);  // module_step.cpp

}  // namespace epilogue
