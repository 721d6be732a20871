// The functions of one thread that the fast kernels run the recurrence with.
#pragma once

#include "kernels/simt.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

constexpr float kLog2E = 1.44269504F;

// Exponents come in units of ln 2: A is multiplied by log2(e) beforehand.
struct DeviceMath {
    using Value = float;
    static MTMAMBA_DEVICE float decay(float exponent) { return exp2Approx(exponent); }

    // log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): the polynomial's coefficients are
    // those of the CPU kernel. The rounding of the exponent costs as much as that of x itself already has.
    static MTMAMBA_DEVICE float softplus(float x) {
        float const e = exp2Approx(-fabsf(x) * kLog2E);
        float const s = e * reciprocalApprox(fmaf(0.5F, e, 1.F)); // twice that of atanh
        float const z = s * s;
        float p = fmaf(z, 0.140788898F / 256, 0.139825791F / 64);
        p = fmaf(p, z, 0.200122982F / 16);
        p = fmaf(p, z, 0.333331615F / 4);
        p = fmaf(p, z, 1.F);
        return fmaf(s, p, fmaxf(x, 0.F));
    }
};

// log2(1 + 2^x): softplus of x ln 2 in units of ln 2, so that 2^(this A) is a decay. For half precision the rest beside
// max(x, 0), log2(1 + e) = e P(e), is a polynomial in e = 2^-|x|, off by 8.4e-6 of itself at most.
template <typename T> MTMAMBA_DEVICE float softplus2(float x) {
    float const e = exp2Approx(-fabsf(x));
    float p;
    if (sizeof(T) == sizeof(float)) { // as DeviceMath::softplus, times log2(e)
        float const s = e * reciprocalApprox(fmaf(0.5F, e, 1.F)), z = s * s;
        p = fmaf(z, kLog2E * 0.140788898F / 256, kLog2E * 0.139825791F / 64);
        p = fmaf(p, z, kLog2E * 0.200122982F / 16);
        p = fmaf(p, z, kLog2E * 0.333331615F / 4);
        return fmaf(s, fmaf(p, z, kLog2E), fmaxf(x, 0.F));
    }
    p = fmaf(e, -0.0344364382F, 0.146037148F);
    p = fmaf(e, p, -0.303043418F);
    p = fmaf(e, p, 0.469178306F);
    p = fmaf(e, p, -0.720426928F);
    p = fmaf(e, p, 1.44268295F);
    return fmaf(e, p, fmaxf(x, 0.F));
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
