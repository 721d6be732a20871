// The functions of one thread that the fast kernels run the recurrence with.
#pragma once

#include "kernels/simt.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

constexpr float kLog2E = 1.44269504F;
constexpr float kLog2ELow = 1.92596299e-8F; // log2(e) - kLog2E
constexpr float kLn2 = 0.693147181F;

// Exponents come in units of ln 2: A is multiplied by log2(e) beforehand.
struct DeviceMath {
    using Value = float;
    static MTMAMBA_DEVICE float decay(float exponent) { return exp2Approx(exponent); }

    // e^-x for x >= 0. The rounding of the exponent is put back, so that the relative error does not grow with x.
    static MTMAMBA_DEVICE float expOfNegative(float x) {
        float const large = x > 150.F ? 150.F : x; // NaN stays; without it infinity minus infinity would come
        float const exponent = -large * kLog2E;
        float const lost = fmaf(-large, kLog2ELow, fmaf(-large, kLog2E, -exponent));
        float const power = exp2Approx(exponent);
        return fmaf(power * kLn2, lost, power);
    }

    // log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): the polynomial's coefficients are
    // those of the CPU kernel.
    static MTMAMBA_DEVICE float softplus(float x) {
        float const e = expOfNegative(fabsf(x));
        float const s = e * reciprocalApprox(e + 2.F);
        float const z = s * s;
        float p = fmaf(z, 0.140788898F, 0.139825791F);
        p = fmaf(p, z, 0.200122982F);
        p = fmaf(p, z, 0.333331615F);
        p = fmaf(p, z, 1.F);
        return fmaf(2.F * s, p, x > 0.F ? x : 0.F);
    }
};

} // namespace mtmamba

#endif // MTMAMBA_SIMT
