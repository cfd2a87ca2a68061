// out [n_out] = base + scale·Ŵx for one x [n_in], Ŵ = (code - zero)·step: the INT4 product of one decoded token.
//
// A word holds the codes of 8 neighbouring inputs, the first in its low bits. `ranges` [n_out, n_in / GROUP] holds the
// bits of a bfloat16 step above those of a zero point. x, base and out are bfloat16, sums float32.
// A block has 16 rows, its warps share the inputs: 4 lanes times WORDS words of each row are a step, by matrix units
// whose other operand is x eight times over. N_IN, GROUP and WARPS are defined where this is compiled.

constexpr int WORDS = GROUP >= 128 ? 4 : GROUP / 32, STEPS = N_IN / (32 * WORDS), GROUPS = N_IN / GROUP;
constexpr int TURNS = (STEPS + WARPS - 1) / WARPS;

struct alignas(4 * WORDS) Codes {
    unsigned int word[WORDS];
};

__device__ float lower(unsigned int bits) { return __uint_as_float(bits << 16); }

__device__ unsigned short rounded(float value) {  // to the nearest bfloat16, ties to even
    const unsigned int bits = __float_as_uint(value);
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Codes j and j + 4 of a word less their zero point: 128 + code has the code's bits, and `zeros` are two of -(128 + zero).
__device__ unsigned int two(unsigned int word, int j, unsigned int zeros) {
    const unsigned int codes = ((word >> (4 * j)) & 0x000f000fu) | 0x43004300u;
    unsigned int found;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(codes), "r"(0x3f803f80u), "r"(zeros));
    return found;
}

__device__ void multiply(float (&sum)[4], unsigned int a, unsigned int b, unsigned int c, unsigned int d, unsigned int x,
                         unsigned int y) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b), "r"(c), "r"(d), "r"(x), "r"(y));
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) int4_product(
    const uint4* __restrict__ x, const unsigned int* __restrict__ words, const unsigned int* __restrict__ ranges,
    const unsigned short* base, unsigned short* out, double scale, int n_out, int add) {
    __shared__ uint4 inputs[N_IN / 8];  // of each word, inputs j and j + 4 together
    __shared__ float parts[WARPS][16];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = blockIdx.x * 16 + (lane >> 2);
    Codes codes[TURNS][2];
    unsigned int range[TURNS][2];
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int step = turn * WARPS + warp;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = first + 8 * half;
            const bool real = step < STEPS && row < n_out;
            const size_t at = (size_t)(real ? row : 0) * (N_IN / 8) + ((real ? step : 0) * 4 + (lane & 3)) * WORDS;
            codes[turn][half] = *reinterpret_cast<const Codes*>(words + at);
            range[turn][half] = real ? ranges[row * GROUPS + step * 32 * WORDS / GROUP] : 0;
        }
    }
    for (int i = threadIdx.x; i < N_IN / 8; i += 32 * WARPS) {
        const uint4 v = x[i];
        inputs[i] = make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                               __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
    }
    __syncthreads();
    float total[2] = {};
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int step = turn * WARPS + warp;
        if (step < STEPS) {
            float sum[4] = {};
            unsigned int zeros[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const unsigned int zero = range[turn][half] & 0xffu;
                zeros[half] = 0xc300c300u | zero | zero << 16;
            }
#pragma unroll
            for (int c = 0; c < WORDS; c++) {
                const uint4 eight = inputs[(step * 4 + (lane & 3)) * WORDS + c];
                const unsigned int a = codes[turn][0].word[c], b = codes[turn][1].word[c];
                multiply(sum, two(a, 0, zeros[0]), two(b, 0, zeros[1]), two(a, 1, zeros[0]), two(b, 1, zeros[1]),
                         eight.x, eight.y);
                multiply(sum, two(a, 2, zeros[0]), two(b, 2, zeros[1]), two(a, 3, zeros[0]), two(b, 3, zeros[1]),
                         eight.z, eight.w);
            }
            total[0] = fmaf(__uint_as_float(range[turn][0] & 0xffff0000u), sum[0], total[0]);
            total[1] = fmaf(__uint_as_float(range[turn][1] & 0xffff0000u), sum[2], total[1]);
        }
    }
    if ((lane & 3) == 0) {
        parts[warp][lane >> 2] = total[0];
        parts[warp][8 + (lane >> 2)] = total[1];
    }
    __syncthreads();
    const int row = blockIdx.x * 16 + threadIdx.x;
    if (threadIdx.x < 16 && row < n_out) {
        float found = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) found += parts[w][threadIdx.x];
        out[row] = rounded(add ? lower(base[row]) + (float)scale * found : found);
    }
}
