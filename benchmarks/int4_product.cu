// out [n_out] of one x [N_IN] and the INT4 weights Ŵ = (code - zero)·step: the products of one decoded token.
//
// NORMED: x is first divided by its root mean square and multiplied by `weight` [N_IN].
// out is Ŵx; ADDED: base + scale·Ŵx; GATED: of Ŵ [2·n_out, N_IN], silu of the first half of Ŵx times the second.
//
// Four neighbouring `words` hold the codes of 32 neighbouring inputs, the first in the low bits. `ranges` [rows, N_IN /
// GROUP] holds the bits of a bfloat16 step above those of a zero point. x, weight, base and out are bfloat16, sums
// float32; a normed x, and what is gated, is rounded to bfloat16 where a kernel of its own would store it.
// A block has 16 rows of Ŵ, its warps share the inputs: 4 lanes times WORDS words of each row are a step, by matrix
// units whose other operand is x eight times over. They multiply 128 + code, which has the code's bits in bfloat16;
// what that is too much, (128 + zero)·Σx, is subtracted from a step's sum. n_out is a multiple of 16 (8 where GATED).
// Names in capitals are defined where this is compiled.

constexpr int WORDS = GROUP >= 128 ? 4 : GROUP / 32, STEPS = N_IN / (32 * WORDS), GROUPS = N_IN / GROUP;
constexpr int TURNS = (STEPS + WARPS - 1) / WARPS, THREADS = 32 * WARPS;
constexpr int EIGHTS = N_IN / 8, EACH = (EIGHTS + THREADS - 1) / THREADS;  // of x; of a thread
constexpr int FOURS = N_IN / 32, STRIDE = FOURS + (12 - FOURS % 8) % 8;    // words of a row; two rows share no bank
constexpr int OUTPUTS = GATED ? 8 : 16;                                    // of a block

struct alignas(4 * WORDS) Codes {
    unsigned int word[WORDS];
};

struct Shared {
    uint4 words[16][STRIDE], inputs[EIGHTS];
    unsigned int ranges[16][GROUPS];
    unsigned long long weight_here, words_here;
    float sums[STEPS], squares[WARPS], parts[WARPS][16];
};
static_assert(sizeof(Shared) <= SHARED, "SHARED is what is launched with");

// Where `inputs` has those of a word: what 4 lanes read at once lies in a row.
__device__ int spot(int i) { return (i / (4 * WORDS) * WORDS + i % WORDS) * 4 + i % (4 * WORDS) / WORDS; }

__device__ unsigned int two(unsigned int word, int j) {  // codes j and j + 4
    return ((word >> (4 * j)) & 0x000f000fu) | 0x43004300u;
}

__device__ unsigned int times(unsigned int a, unsigned int b) {  // two bfloat16; adds -0
    unsigned int found;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(found) : "r"(a), "r"(b), "r"(0x80008000u));
    return found;
}

__device__ void multiply(float (&sum)[4], unsigned int a, unsigned int b, unsigned int c, unsigned int d,
                         unsigned int x, unsigned int y) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b), "r"(c), "r"(d), "r"(x), "r"(y));
}

extern "C" __global__ void __launch_bounds__(THREADS) int4_product(
    const uint4* x, const uint4* words, const unsigned int* ranges, const uint4* weight, float eps,
    const unsigned short* base, float scale, unsigned short* out, int n_out) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5, output = blockIdx.x * OUTPUTS + thread;
    if (warp == 0) {
        if (lane == 0) {
            if (NORMED) open(&shared.weight_here), expect(&shared.weight_here, 2 * N_IN);
            open(&shared.words_here), expect(&shared.words_here, 8 * N_IN + 64 * GROUPS);
            if (NORMED) copy(shared.inputs, weight, 2 * N_IN, &shared.weight_here);
        }
        __syncwarp();
        if (lane < 18) {  // lanes 0 to 15: a row's codes; 16 and 17: ranges of 8 rows
            const int row = lane < 16 ? lane : 8 * (lane - 16);
            const size_t from = blockIdx.x * OUTPUTS + row % 8 + row / 8 * (GATED ? n_out : 8);
            if (lane < 16) copy(shared.words[row], words + from * FOURS, N_IN / 2, &shared.words_here);
            if (lane >= 16) copy(shared.ranges[row], ranges + from * GROUPS, 32 * GROUPS, &shared.words_here);
        }
    }
    release();
    __syncthreads();

    await();
    const float before = ADDED && thread < OUTPUTS ? lower(base[output]) : 0;
    unsigned int of_x[EACH][4], weights[EACH][4];
    float square = 0, by = 1;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int i = e * THREADS + thread;
        const uint4 eight = i < EIGHTS ? x[i] : make_uint4(0, 0, 0, 0);
        of_x[e][0] = eight.x, of_x[e][1] = eight.y, of_x[e][2] = eight.z, of_x[e][3] = eight.w;
#pragma unroll
        for (unsigned int each : of_x[e]) square += lower(each) * lower(each) + upper(each) * upper(each);
    }
    if (NORMED) {
        square = summed<1, 32>(square);
        if (lane == 0) shared.squares[warp] = square;
        arrived(&shared.weight_here, 0);
#pragma unroll
        for (int e = 0; e < EACH; e++) {  // the inputs take their place
            const uint4 v = shared.inputs[min(e * THREADS + thread, EIGHTS - 1)];
            weights[e][0] = v.x, weights[e][1] = v.y, weights[e][2] = v.z, weights[e][3] = v.w;
        }
        __syncthreads();
        square = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) square += shared.squares[w];
        by = rsqrtf(square / N_IN + eps);
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
        const int i = e * THREADS + thread;
        unsigned int(&of)[4] = of_x[e];
        float sum = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (NORMED) of[j] = times(pair(lower(of[j]) * by, upper(of[j]) * by), weights[e][j]);
            sum += lower(of[j]) + upper(of[j]);
        }
        sum = summed<1, 4 * WORDS>(sum);
        if (i < EIGHTS) {  // inputs j and j + 4 together, as in a word
            shared.inputs[spot(i)] = make_uint4(__byte_perm(of[0], of[2], 0x5410), __byte_perm(of[0], of[2], 0x7632),
                                                __byte_perm(of[1], of[3], 0x5410), __byte_perm(of[1], of[3], 0x7632));
            if (i % (4 * WORDS) == 0) shared.sums[i / (4 * WORDS)] = sum;
        }
    }
    __syncthreads();

    arrived(&shared.words_here, 0);
    float total[2] = {};
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
        const int mine = turn * WARPS + warp, step = min(mine, STEPS - 1), part = lane & 3, row = lane >> 2;
        const Codes a = reinterpret_cast<const Codes*>(shared.words[row])[step * 4 + part];
        const Codes b = reinterpret_cast<const Codes*>(shared.words[row + 8])[step * 4 + part];
        float sum[2][4] = {};  // two, so that one need not wait for the other
#pragma unroll
        for (int c = 0; c < WORDS; c++) {
            const uint4 v = shared.inputs[(step * WORDS + c) * 4 + part];
            multiply(sum[0], two(a.word[c], 0), two(b.word[c], 0), two(a.word[c], 1), two(b.word[c], 1), v.x, v.y);
            multiply(sum[1], two(a.word[c], 2), two(b.word[c], 2), two(a.word[c], 3), two(b.word[c], 3), v.z, v.w);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned int range = mine < STEPS ? shared.ranges[row + 8 * half][step * 32 * WORDS / GROUP] : 0;
            const float found = sum[0][2 * half] + sum[1][2 * half];
            total[half] = fmaf(upper(range), fmaf(-128.0f - (range & 0xffu), shared.sums[step], found), total[half]);
        }
    }
    if ((lane & 3) == 0) {
        shared.parts[warp][lane >> 2] = total[0];
        shared.parts[warp][8 + (lane >> 2)] = total[1];
    }
    __syncthreads();
    if (thread < OUTPUTS) {
        float found = 0, up = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            found += shared.parts[w][thread];
            if (GATED) up += shared.parts[w][8 + thread];
        }
        if (GATED) {
            const unsigned int both = pair(found, up);
            found = lower(both) / (1 + __expf(-lower(both))) * upper(both);
        }
        out[output] = pair(ADDED ? before + scale * found : found, 0);
    }
}
