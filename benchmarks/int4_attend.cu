// Attention of one decoded token, a block for each query head: rotates q and k, puts k and v into the cache at `places`
// [1], attends to what it holds up to there. out [n_heads·SIZE] of qkv [(n_heads + 2·n_kv)·SIZE]; keys, values
// [n_kv, context, SIZE]; cos, sin [context, SIZE]. All but places are bfloat16 and read in eights; sums are float32.
//
// PLACES places of the cache are copied to shared memory at a time, the first before q is there; LANES lanes hold a
// place's SIZE numbers. Each group of lanes keeps its own greatest score, sum of shares and output of its places; they
// are brought together at the end. SIZE, WARPS and PLACES are defined where this is compiled.

constexpr int LANES = SIZE / 8, ACROSS = 32 * WARPS / LANES, AHEAD = PLACES / ACROSS;
static_assert(SIZE >= 16 && SIZE <= 256 && (SIZE & (SIZE - 1)) == 0, "of a head's size");
static_assert(SIZE <= 32 * WARPS && PLACES % ACROSS == 0, "of the warps and places");

struct Shared {
    uint4 keys[PLACES][LANES], values[PLACES][LANES];
    unsigned long long here;
    float peaks[WARPS], weights[WARPS], outputs[WARPS][SIZE];
};
static_assert(sizeof(Shared) <= SHARED, "SHARED is what is launched with");

__device__ void widened(float (&out)[8], uint4 v) {
    const unsigned int all[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) out[2 * i] = lower(all[i]), out[2 * i + 1] = upper(all[i]);
}

__device__ float product(const float (&a)[8], const float (&b)[8]) {  // of whole vectors, in each of their lanes
    float found = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) found = fmaf(a[i], b[i], found);
    return summed<1, LANES>(found);
}

// Eight numbers of a head after rotation; the sine's sign is the half's.
__device__ void rotated(float (&out)[8], const uint4* head, int part, const float (&cosine)[8],
                        const float (&sine)[8]) {
    float here[8], other[8];
    widened(here, head[part]);
    widened(other, head[part ^ (LANES / 2)]);
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = here[i] * cosine[i] + other[i] * sine[i];
}

__device__ void send_for(Shared& shared, const uint4* keys, const uint4* values, int n) {
    const int bytes = n * SIZE * 2;
    expect(&shared.here, 2 * bytes);
    copy(shared.keys, keys, bytes, &shared.here);
    copy(shared.values, values, bytes, &shared.here);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) int4_attend(
    const uint4* qkv, uint4* keys, uint4* values, const long long* places, const uint4* cos, const uint4* sin,
    unsigned short* out, float scale, int context, int n_heads, int n_kv) {
    extern __shared__ uint4 memory[];
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    const int part = thread % LANES, slot = thread / LANES;
    const int head = blockIdx.x, sharing = n_heads / n_kv, kv = head / sharing, place = *places;
    keys += (size_t)kv * context * LANES, values += (size_t)kv * context * LANES;
    if (thread == 0) open(&shared.here);
    if (thread == 0 && place > 0) send_for(shared, keys, values, min(place, PLACES));
    release();
    float cosine[8], sine[8], q[8], k[8], v[8];
    widened(cosine, cos[place * LANES + part]);
    widened(sine, sin[place * LANES + part]);
#pragma unroll
    for (int i = 0; i < 8; i++) sine[i] = part < LANES / 2 ? -sine[i] : sine[i];

    await();
    const uint4 new_value = qkv[(n_heads + n_kv + kv) * LANES + part];
    widened(v, new_value);
    rotated(q, qkv + head * LANES, part, cosine, sine);
    rotated(k, qkv + (n_heads + kv) * LANES, part, cosine, sine);
    if (head % sharing == 0 && slot == 0) {
        keys[place * LANES + part] = make_uint4(pair(k[0], k[1]), pair(k[2], k[3]), pair(k[4], k[5]), pair(k[6], k[7]));
        values[place * LANES + part] = new_value;
    }
    float most = product(q, k) * scale, weight = slot == 0 ? 1 : 0, total[8];  // every group knows this score
#pragma unroll
    for (int j = 0; j < 8; j++) total[j] = slot == 0 ? v[j] : 0;
    for (int start = 0; start < place; start += PLACES) {
        __syncthreads();  // the barrier is there, and everyone done with what was
        if (start > 0 && thread == 0) {
            send_for(shared, keys + start * LANES, values + start * LANES, min(place - start, PLACES));
        }
        if (start > 0) __syncthreads();
        arrived(&shared.here, start / PLACES);
        float score[AHEAD], now = most, each[8];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            widened(each, shared.keys[i * ACROSS + slot][part]);
            const float found = product(q, each) * scale;
            score[i] = start + i * ACROSS + slot < place ? found : __uint_as_float(0xff800000u);  // -inf
            now = fmaxf(now, score[i]);
        }
        const float before = __expf(most - now);
        weight *= before;
#pragma unroll
        for (int j = 0; j < 8; j++) total[j] *= before;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (start + i * ACROSS + slot < place) {
                const float share = __expf(score[i] - now);
                weight += share;
                widened(each, shared.values[i * ACROSS + slot][part]);
#pragma unroll
                for (int j = 0; j < 8; j++) total[j] = fmaf(share, each[j], total[j]);
            }
        }
        most = now;
    }

    float top = most;
#pragma unroll
    for (int apart = LANES; apart < 32; apart *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, apart));
    if (lane == 0) shared.peaks[warp] = top;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; w++) top = fmaxf(top, shared.peaks[w]);
    const float share = __expf(most - top);
    weight = summed<LANES, 32>(weight * share);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        total[j] = summed<LANES, 32>(total[j] * share);
        if (lane < LANES) shared.outputs[warp][lane * 8 + j] = total[j];
    }
    if (lane == 0) shared.weights[warp] = weight;
    __syncthreads();
    if (thread < SIZE) {
        float found = 0, all = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) found += shared.outputs[w][thread], all += shared.weights[w];
        out[head * SIZE + thread] = pair(found / all, 0);
    }
}
