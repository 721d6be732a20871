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

    static MTMAMBA_DEVICE float softplus(float x) { return rectified(x, exp2Approx(-fabsf(x) * kLog2E), 1.F); }

    // max(x, 0) + unit log(1 + e): log1p(e) = 2 atanh(e / (2 + e)), and the polynomial's coefficients are those of the
    // CPU kernel. With unit = 1 and e = e^-|x| log(1 + e^x); the rounding of the exponent costs as much as that of x
    // itself already has.
    static MTMAMBA_DEVICE float rectified(float x, float e, float unit) {
        float const s = e * reciprocalApprox(fmaf(0.5F, e, 1.F)); // twice that of atanh
        float const z = s * s;
        float p = fmaf(z, unit * 0.140788898F / 256, unit * 0.139825791F / 64);
        p = fmaf(p, z, unit * 0.200122982F / 16);
        p = fmaf(p, z, unit * 0.333331615F / 4);
        p = fmaf(p, z, unit);
        return fmaf(s, p, fmaxf(x, 0.F));
    }
};

// log2(1 + 2^x): softplus of x ln 2 in units of ln 2, so that 2^(this A) is a decay. For half precision the rest beside
// max(x, 0), log2(1 + e) = e P(e), is a polynomial in e = 2^-|x|, off by 8.4e-6 of itself at most.
template <typename T> MTMAMBA_DEVICE float softplus2(float x) {
    float const e = exp2Approx(-fabsf(x));
    if (sizeof(T) == sizeof(float)) {
        return DeviceMath::rectified(x, e, kLog2E);
    }
    float p = fmaf(e, -0.0344364382F, 0.146037148F);
    p = fmaf(e, p, -0.303043418F);
    p = fmaf(e, p, 0.469178306F);
    p = fmaf(e, p, -0.720426928F);
    p = fmaf(e, p, 1.44268295F);
    return fmaf(e, p, fmaxf(x, 0.F));
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
