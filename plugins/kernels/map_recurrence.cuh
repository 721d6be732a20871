// The recurrence of SelectiveScan2D: 16 states of 16 channels in the registers of a warp,
// or 8 states of 8, laid out as the tensor
// cores lay out their matrices.
//
// What h = a h + b, y = C . h needs of all channels and states at a token are products of matrices: b = (d u) B^T, of
// rank one, and y = h C. Both go to the tensor cores, whose accumulators have the states where the lanes have them, and
// whose left operand has them there too. What is left for an update is a = 2^(d A) and a multiply-add: one
// multiplication, one exponential, one multiply-add; and for 8 channels of 16 states each, at a token, two to four
// products. Four lanes share a channel, each with 4 of its kFold states.
//
//   b  m16n8k4, tf32. Rows: channels. K: d u in two parts of 11 bits, and B in two where it is float32, so that b has
//      float32's accuracy. For half precision the second parts of B are zero.
//   y  m16n8k8, tf32. Rows: channels; kPer = 1: 8 channels at two tokens. K: 8 states. Columns: the C of 8 tokens, of
//      which a state needs that of its own: one lane of the four has it. float32: three products, of both in two parts.
//
// The state never passes through the tensor cores, whose sums are cut off.
#pragma once

#include "kernels/map_tile.cuh"

#ifdef MTMAMBA_SIMT

namespace mtmamba {

// A lane's states, of channels kPer quad + r: [r][i][j]: state 8 i + 2 inQuad + j, or where two warps share them
// 8 share + 2 inQuad + j.
template <int kPer> struct MapStates {
    static constexpr int kOf = kPer; // i
    float h[kPer][kOf][2], A[kPer][kOf][2];
};

// b of one token, as MapStates has its states: [i][2 r + j]. inputs: a part of d u of channels kPer quad + r.
template <typename T, int kOf>
MTMAMBA_DEVICE void inputProducts(float const (&inputs)[2], float const (&B)[kOf], float (&b)[kOf][4]) {
    MTMAMBA_UNROLL
    for (int i = 0; i < kOf; ++i) {
        float value = B[i];
        if (sizeof(T) == sizeof(float)) {
            float const high = roundedToTf32(value);
            value = mapInQuad() < 2 ? high : value - high;
        }
        productTf32(inputs, value, b[i]);
    }
}

// y = h C: h [16, 8 kOf] of two channels, or of a channel at two tokens; C: of the token of each column.
template <typename T, int kOf>
MTMAMBA_DEVICE void outputProducts(float const (&first)[kOf][2], float const (&second)[kOf][2],
                                   float const (&C)[2 * kOf], float* y) {
    MTMAMBA_UNROLL
    for (int i = 0; i < kOf; ++i) {
        float const h[4] = {first[i][0], second[i][0], first[i][1], second[i][1]};
        float const part[2] = {C[2 * i], C[2 * i + 1]};
        if (i == 0) {
            productTf32(h, part, y);
        } else {
            multiplyTf32(h, part, y);
        }
        if (sizeof(T) == sizeof(float)) {
            float const lost[4] = {lostByTf32(h[0]), lostByTf32(h[1]), lostByTf32(h[2]), lostByTf32(h[3])};
            float const lostOfC[2] = {lostByTf32(part[0]), lostByTf32(part[1])};
            multiplyTf32(lost, part, y);
            multiplyTf32(h, lostOfC, y);
        }
    }
}

// The warp's states through a run. share: which of the states, where two warps share them. B, C: of the run's first
// token. Four values of d, of one channel at four tokens or of two at two, make a block: while one is stepped the
// decays of the next are evaluated.
template <typename T, int kPer>
MTMAMBA_DEVICE void stepStates(float* steps, int share, float const* B, float const* C, float const* zeros,
                               MapStates<kPer>& states) {
    using S = MapShape<T, kPer>;
    constexpr int kOf = MapStates<kPer>::kOf;
    constexpr int kTogether = 4 / kPer, kBlocks = kMapRun / kTogether; // tokens of a block
    constexpr int kGroup = 8 / kTogether;                              // blocks of eight tokens
    int const quad = mapQuad(), inQuad = mapInQuad();
    bool const noB = sizeof(T) != sizeof(float) && inQuad >= 2; // only the first two of four products are needed
    B = noB ? zeros + (2 * quad + 16) % (2 * kFold) : B + 2 * quad + share;
    C += quad * kFold + 4 * inQuad + 2 * share;
    steps += quad * S::kStepPitch;
    float const* const inputs = steps + (inQuad % 2 ? S::kLost : S::kHigh);
    float* const outputs = steps + S::kOutput + share * kMapRun;
    float d[4], du[4]; // d: of the next block
    float decays[kTogether][2 * kOf * kPer], c[2 * kOf] = {}, before[kOf][2], values[kTogether][kOf];
    auto const decaysOf = [&](int t) {
        MTMAMBA_UNROLL
        for (int s = 0; s < 2 * kOf * kPer; ++s) {
            int const i = s / (2 * kPer), j = s / kPer % 2, r = s % kPer;
            decays[t][s] = exp2Approx(d[t * kPer + r] * states.A[r][i][j]);
        }
    };
    auto const load = [&](int block) {
        loadFour(inputs + 4 * block, du);
        MTMAMBA_UNROLL
        for (int t = 0; t < kTogether; ++t) {
            loadSome<kOf>(B + (block * kTogether + t) * kFold, values[t]);
        }
    };
    load(0);
    loadFour(steps, d);
    MTMAMBA_UNROLL
    for (int t = 0; t < kTogether; ++t) {
        decaysOf(t);
    }
    loadFour(steps + 4, d);
    MTMAMBA_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
        bool const more = block + 1 < kBlocks;
        float mine[4]; // y of the block
        if (block % kGroup == 0) {
            loadSome<2 * kOf>(C + block / kGroup * (8 * kFold), c);
        }
        MTMAMBA_UNROLL
        for (int t = 0; t < kTogether; ++t) {
            // Two neighbours in registers: for kPer = 1 two tokens, of which one row of the product is wanted.
            int const left = t * kPer / 2 * 2, row = t * kPer % 2;
            float b[kOf][4];
            inputProducts<T>({du[left], du[left + 1]}, values[t], b);
            if (more && t + 1 == kTogether) {
                load(block + 1);
            }
            MTMAMBA_UNROLL
            for (int s = 0; s < 2 * kOf * kPer; ++s) {
                int const i = s / (2 * kPer), j = s / kPer % 2, r = s % kPer;
                states.h[r][i][j] = fmaf(decays[t][s], states.h[r][i][j], b[i][2 * (row + r) + j]);
            }
            if (more) {
                decaysOf(t);
            }
            float y[4];
            if (kPer == 2) {
                outputProducts<T>(states.h[0], states.h[kPer - 1], c, y);
                mine[2 * t % 4] = y[t % 2];
                mine[(2 * t + 1) % 4] = y[2 + t % 2];
            } else if (t % 2) {
                outputProducts<T>(before, states.h[0], c, y);
                mine[t - 1] = y[0];
                mine[t] = y[3];
            } else {
                memcpy(before, states.h[0], sizeof before);
            }
        }
        if (S::kOutput == 0) {
            __syncwarp(); // d of the block has been read
        }
        int const column = block * kTogether % 8 / 2; // of y: the lane that has the block's first two tokens
        if (kPer == 2 && inQuad == column) {
            saveTogether<4>(outputs + 4 * block, mine);
        } else if (kPer == 1 && inQuad / 2 == column / 2) {
            float const two[2] = {inQuad % 2 ? mine[2] : mine[0], inQuad % 2 ? mine[3] : mine[1]};
            saveTogether<2>(outputs + 4 * block + inQuad % 2 * 2, two);
        }
        if (block + 2 < kBlocks) {
            loadFour(steps + 4 * (block + 2), d);
        }
    }
}

} // namespace mtmamba

#endif // MTMAMBA_SIMT
