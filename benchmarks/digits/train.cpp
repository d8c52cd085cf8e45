// Training of one cell's network: gflow.envs.nas.training.train_cell, written out for speed.
//
// A tensor is [blocks][8 channels][side + 2][side + 2][16 images] with a border of zeros, so that
// a convolution needs no cases at its edges and every instruction works on 16 images.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

namespace {

constexpr int L = 16, C = 8, CLASSES = 10, EDGES = 6;
constexpr int SOURCE[EDGES] = {0, 0, 1, 0, 1, 2}, TARGET[EDGES] = {1, 2, 2, 3, 3, 3};
enum Operation { NONE, SKIP, CONV1, CONV3, POOL };
typedef float V __attribute__((vector_size(4 * L)));

// Memory of tensors of one shape, kept for the next network: fresh pages cost more than arithmetic.
// Their borders are never written, and so stay zero.
std::map<std::array<int, 3>, std::vector<V*>> spare;

struct Tensor {
    int side, channels, blocks;
    V* data;

    Tensor(int side, int blocks, int channels = C) : side(side), channels(channels), blocks(blocks) {
        std::vector<V*>& known = spare[{side, channels, blocks}];
        if (known.empty()) {
            size_t bytes = sizeof(V) * blocks * channels * (side + 2) * (side + 2);
            known.push_back(static_cast<V*>(std::aligned_alloc(64, bytes)));
            std::memset(static_cast<void*>(known.back()), 0, bytes);
        }
        data = known.back();
        known.pop_back();
    }
    Tensor(Tensor&& other)
        : side(other.side), channels(other.channels), blocks(other.blocks), data(other.data) {
        other.data = nullptr;
    }
    ~Tensor() {
        if (data) spare[{side, channels, blocks}].push_back(data);
    }
    // First pixel of row y, without the border.
    V* row(int block, int c, int y) const {
        return data + ((size_t(block) * channels + c) * (side + 2) + y + 1) * (side + 2) + 1;
    }
};

float total(V v) {
    float sum = 0;
    for (int i = 0; i < L; i++) sum += v[i];
    return sum;
}

template <class F>
void rows(const Tensor& t, int blocks, F f) {
    for (int b = 0; b < blocks; b++)
        for (int c = 0; c < t.channels; c++)
            for (int y = 0; y < t.side; y++) f(b, c, y);
}

// What becomes of each output of a convolution: out = value, or out += value where gate > 0.
template <int K, bool GATED>
void convolve(const Tensor& x, const float* w, const Tensor& out, const Tensor* gate, int blocks) {
    constexpr int R = K / 2;
    int inputs = x.channels, side = x.side, stride = side + 2;
    for (int b = 0; b < blocks; b++)
        for (int y = 0; y < side; y++)
            for (int px = 0; px < side; px += 2) {
                V sum[2][C] = {};
                const float* weight = w;
                for (int ci = 0; ci < inputs; ci++)
                    for (int dy = -R; dy <= R; dy++) {
                        const V* in = x.row(b, ci, 0) + (y + dy) * stride + px;
                        for (int dx = -R; dx <= R; dx++, weight += C) {
                            V left = in[dx], right = in[dx + 1];
                            for (int co = 0; co < C; co++) {
                                sum[0][co] += left * weight[co];
                                sum[1][co] += right * weight[co];
                            }
                        }
                    }
                for (int co = 0; co < C; co++)
                    for (int i = 0; i < 2; i++) {
                        V* to = out.row(b, co, y) + px + i;
                        if (GATED)
                            *to += gate->row(b, co, y)[px + i] > 0 ? sum[i][co] : V{};
                        else
                            *to = sum[i][co];
                    }
            }
}

// Gradient [inputs][K * K][C] of the weights.
template <int K>
void weight_gradient(const Tensor& x, const Tensor& g, float* out, int blocks) {
    constexpr int R = K / 2;
    int stride = x.side + 2;
    for (int ci = 0; ci < x.channels; ci++)
        for (int dy = -R; dy <= R; dy++, out += K * C) {
            V sum[K][C] = {};
            for (int b = 0; b < blocks; b++)
                for (int y = 0; y < x.side; y++) {
                    const V* in = x.row(b, ci, 0) + (y + dy) * stride;
                    const V* up[C];
                    for (int co = 0; co < C; co++) up[co] = g.row(b, co, y);
                    for (int px = 0; px < x.side; px++)
                        for (int dx = 0; dx < K; dx++) {
                            V value = in[px + dx - R];
                            for (int co = 0; co < C; co++) sum[dx][co] += value * up[co][px];
                        }
                }
            for (int i = 0; i < K * C; i++) out[i] = total(sum[i / C][i % C]);
        }
}

// to += (sums over the 3x3 neighborhood) / (number of pixels there); `turned` divides first.
void pool(const Tensor& from, const Tensor& to, int blocks, bool turned) {
    int side = from.side, stride = side + 2;
    auto share = [side](int y, int x) {
        int high = 3 - (y == 0) - (y == side - 1), wide = 3 - (x == 0) - (x == side - 1);
        return (y < 0 || x < 0 || y >= side || x >= side) ? 0.0f : 1.0f / (high * wide);
    };
    std::vector<float> before((side + 2) * stride, 1.0f), after(side * side, 1.0f);
    for (int y = -1; y <= side; y++)
        for (int x = -1; x <= side; x++)
            if (turned) before[(y + 1) * stride + x + 1] = share(y, x);
            else if (share(y, x) > 0) after[y * side + x] = share(y, x);
    rows(from, blocks, [&](int b, int c, int y) {
        V column[10];
        const V* in = from.row(b, c, y);
        const float* f = &before[(y + 1) * stride + 1];
        for (int x = -1; x <= side; x++)
            column[x + 1] = in[x - stride] * f[x - stride] + in[x] * f[x]
                + in[x + stride] * f[x + stride];
        V* out = to.row(b, c, y);
        for (int x = 0; x < side; x++)
            out[x] += (column[x] + column[x + 1] + column[x + 2]) * after[y * side + x];
    });
}

struct Convolution {
    int kernel, inputs;
    Tensor y;  // normalized output
    float *weight, *gradient;
    float scale[C] = {};
    std::vector<float> packed;

    Convolution(int kernel, int inputs, int side, int blocks, float* weight, float* gradient)
        : kernel(kernel), inputs(inputs), y(side, blocks), weight(weight), gradient(gradient),
          packed(size_t(C) * inputs * kernel * kernel) {}
    int size() const { return C * inputs * kernel * kernel; }

    // Convolution of x and normalization by the statistics of the first `seen` blocks.
    void forward(const Tensor& x, int blocks, int seen) {
        int taps = kernel * kernel;
        for (int co = 0; co < C; co++)
            for (int i = 0; i < inputs * taps; i++) packed[i * C + co] = weight[co * inputs * taps + i];
        if (kernel == 1) convolve<1, false>(x, packed.data(), y, nullptr, blocks);
        else convolve<3, false>(x, packed.data(), y, nullptr, blocks);
        V sum[C] = {}, square[C] = {};
        rows(y, seen, [&](int b, int c, int row) {
            const V* in = y.row(b, c, row);
            for (int i = 0; i < y.side; i++) sum[c] += in[i], square[c] += in[i] * in[i];
        });
        float shift[C], n = float(seen) * L * y.side * y.side;
        for (int c = 0; c < C; c++) {
            float mean = total(sum[c]) / n;
            scale[c] = 1 / std::sqrt(total(square[c]) / n - mean * mean + 1e-5f);
            shift[c] = -mean * scale[c];
        }
        rows(y, blocks, [&](int b, int c, int row) {
            V* in = y.row(b, c, row);
            for (int i = 0; i < y.side; i++) in[i] = in[i] * scale[c] + shift[c];
        });
    }

    // g: gradient of the normalized output; g_in += that of the input where x > 0, if wanted.
    void backward(const Tensor& x, const Tensor& g, const Tensor& work, const Tensor* g_in, int blocks) {
        V sum[C] = {}, along[C] = {};
        rows(y, blocks, [&](int b, int c, int row) {
            const V *up = g.row(b, c, row), *out = y.row(b, c, row);
            for (int i = 0; i < y.side; i++) sum[c] += up[i], along[c] += up[i] * out[i];
        });
        float mean[C], share[C], n = float(blocks) * L * y.side * y.side;
        for (int c = 0; c < C; c++) mean[c] = total(sum[c]) / n, share[c] = total(along[c]) / n;
        rows(y, blocks, [&](int b, int c, int row) {
            const V *up = g.row(b, c, row), *out = y.row(b, c, row);
            V* to = work.row(b, c, row);
            for (int i = 0; i < y.side; i++)
                to[i] = (up[i] - mean[c] - out[i] * share[c]) * scale[c];
        });
        int taps = kernel * kernel;
        std::vector<float> turned(size());
        if (kernel == 1) weight_gradient<1>(x, work, turned.data(), blocks);
        else weight_gradient<3>(x, work, turned.data(), blocks);
        for (int co = 0; co < C; co++)
            for (int i = 0; i < inputs * taps; i++) gradient[co * inputs * taps + i] = turned[i * C + co];
        if (!g_in) return;
        // The transposed convolution: inputs and outputs change places, the kernel is turned.
        for (int co = 0; co < C; co++)
            for (int ci = 0; ci < C; ci++)
                for (int t = 0; t < taps; t++)
                    turned[(co * taps + taps - 1 - t) * C + ci] = weight[(co * C + ci) * taps + t];
        if (kernel == 1) convolve<1, true>(work, turned.data(), *g_in, &x, blocks);
        else convolve<3, true>(work, turned.data(), *g_in, &x, blocks);
    }
};

void fill(const Tensor& t, int blocks) {
    rows(t, blocks, [&](int b, int c, int y) { memset(t.row(b, c, y), 0, sizeof(V) * t.side); });
}

void add(const Tensor& from, const Tensor& to, int blocks) {
    rows(from, blocks, [&](int b, int c, int y) {
        const V* in = from.row(b, c, y);
        V* out = to.row(b, c, y);
        for (int i = 0; i < from.side; i++) out[i] += in[i];
    });
}

struct Cell {
    const int* operations;
    std::vector<Tensor> node, positive, gradient;  // positive: after the ReLU
    std::vector<std::unique_ptr<Convolution>> convolution;
    Tensor work;
    bool wanted[3] = {};

    Cell(const int* operations, int side, int blocks, float*& weight, float*& gradient_of)
        : operations(operations), convolution(EDGES), work(side, blocks) {
        for (int i = 0; i < 4; i++) {
            node.emplace_back(side, blocks);
            positive.emplace_back(side, blocks);
            gradient.emplace_back(side, blocks);
        }
        for (int e = 0; e < EDGES; e++) {
            if (operations[e] != CONV1 && operations[e] != CONV3) continue;
            int kernel = operations[e] == CONV1 ? 1 : 3;
            convolution[e].reset(new Convolution(kernel, C, side, blocks, weight, gradient_of));
            weight += convolution[e]->size(), gradient_of += convolution[e]->size();
            wanted[SOURCE[e]] = true;
        }
    }
    // Edges come in an order in which a node's inputs are complete before it is used.
    void forward(int blocks, int seen) {
        for (int i = 1; i < 4; i++) fill(node[i], blocks);
        for (int source = 0; source < 3; source++) {
            const Tensor &x = node[source], &positive_x = positive[source];
            if (wanted[source])
                rows(x, blocks, [&](int b, int c, int y) {
                    const V* in = x.row(b, c, y);
                    V* out = positive_x.row(b, c, y);
                    for (int i = 0; i < x.side; i++) out[i] = in[i] > 0 ? in[i] : V{};
                });
            for (int e = 0; e < EDGES; e++) {
                if (SOURCE[e] != source) continue;
                if (operations[e] == SKIP) add(x, node[TARGET[e]], blocks);
                if (operations[e] == POOL) pool(x, node[TARGET[e]], blocks, false);
                if (!convolution[e]) continue;
                convolution[e]->forward(positive_x, blocks, seen);
                add(convolution[e]->y, node[TARGET[e]], blocks);
            }
        }
    }
    // From the gradient of the last node to that of the first.
    void backward(int blocks) {
        for (int i = 0; i < 3; i++) fill(gradient[i], blocks);
        for (int e = EDGES - 1; e >= 0; e--) {
            const Tensor &g = gradient[TARGET[e]], &to = gradient[SOURCE[e]];
            if (operations[e] == SKIP) add(g, to, blocks);
            if (operations[e] == POOL) pool(g, to, blocks, true);
            if (convolution[e]) convolution[e]->backward(positive[SOURCE[e]], g, work, &to, blocks);
        }
    }
};

}  // namespace

// Trains in place and gives the logits [n][10] of all images, the first n_seen of which are the
// training set; n, n_seen and batch are multiples of 16. The cell must have no dead edges and an
// output that is not always zero. weights: 3x3 stem [8][1][9], the convolutions [8][8][k * k] of
// the first cell by edge, of the second, linear [10][8], bias [10]. order: steps x batch images.
extern "C" void train(const int* operations, const float* images, const int* labels, int n,
                      int n_seen, const int* order, int steps, int batch, float learning_rate,
                      float momentum, float decay, float* weights, int n_weights, float* logits) {
    int blocks = n / L, seen = n_seen / L;
    std::vector<float> gradients(n_weights), velocity(n_weights);
    float *w = weights, *g = gradients.data();
    Tensor pixels(8, blocks, 1), stem_work(8, blocks);
    Convolution stem(3, 1, 8, blocks, w, g);
    w += stem.size(), g += stem.size();
    Cell first(operations, 8, blocks, w, g), second(operations, 4, blocks, w, g);
    float *linear = w, *bias = w + CLASSES * C, *g_linear = g, *g_bias = g + CLASSES * C;

    auto load = [&](const int* rows_of, int count) {
        for (int i = 0; i < count; i++)
            for (int y = 0; y < 8; y++)
                for (int x = 0; x < 8; x++)
                    pixels.row(i / L, 0, y)[x][i % L] = images[(rows_of ? rows_of[i] : i) * 64 + y * 8 + x];
    };
    std::vector<float> mean;
    auto forward = [&](int count, int known, float* out) {
        stem.forward(pixels, count, known);
        rows(stem.y, count, [&](int b, int c, int y) {
            memcpy(first.node[0].row(b, c, y), stem.y.row(b, c, y), sizeof(V) * 8);
        });
        first.forward(count, known);
        rows(second.node[0], count, [&](int b, int c, int y) {
            const V *a = first.node[3].row(b, c, 2 * y), *z = first.node[3].row(b, c, 2 * y + 1);
            V* to = second.node[0].row(b, c, y);
            for (int x = 0; x < 4; x++)
                to[x] = (a[2 * x] + a[2 * x + 1] + z[2 * x] + z[2 * x + 1]) * 0.25f;
        });
        second.forward(count, known);
        mean.assign(size_t(count) * L * C, 0);
        rows(second.node[3], count, [&](int b, int c, int y) {
            const V* in = second.node[3].row(b, c, y);
            V sum = (in[0] + in[1] + in[2] + in[3]) / 16.0f;
            for (int i = 0; i < L; i++) mean[(b * L + i) * C + c] += sum[i];
        });
        for (int i = 0; i < count * L; i++)
            for (int k = 0; k < CLASSES; k++) {
                float value = bias[k];
                for (int c = 0; c < C; c++) value += linear[k * C + c] * mean[i * C + c];
                out[i * CLASSES + k] = value;
            }
    };
    std::vector<float> out(size_t(batch) * CLASSES);
    for (int step = 0; step < steps; step++, order += batch) {
        int count = batch / L;
        load(order, batch);
        forward(count, count, out.data());
        std::fill(gradients.begin(), gradients.end(), 0.0f);
        for (int i = 0; i < batch; i++) {
            float *row = &out[i * CLASSES], top = *std::max_element(row, row + CLASSES), sum = 0;
            for (int k = 0; k < CLASSES; k++) sum += row[k] = std::exp(row[k] - top);
            for (int k = 0; k < CLASSES; k++)
                row[k] = (row[k] / sum - (k == labels[order[i]])) / batch;
            for (int k = 0; k < CLASSES; k++) {
                g_bias[k] += row[k];
                for (int c = 0; c < C; c++) g_linear[k * C + c] += row[k] * mean[i * C + c];
            }
            for (int c = 0; c < C; c++) {
                float up = 0;
                for (int k = 0; k < CLASSES; k++) up += row[k] * linear[k * C + c];
                for (int y = 0; y < 4; y++)
                    for (int x = 0; x < 4; x++)
                        second.gradient[3].row(i / L, c, y)[x][i % L] = up / 16;
            }
        }
        second.backward(count);
        rows(first.gradient[3], count, [&](int b, int c, int y) {
            const V* in = second.gradient[0].row(b, c, y / 2);
            V* to = first.gradient[3].row(b, c, y);
            for (int x = 0; x < 8; x++) to[x] = in[x / 2] * 0.25f;
        });
        first.backward(count);
        stem.backward(pixels, first.gradient[0], stem_work, nullptr, count);
        float rate = learning_rate * 0.5f * (1 + std::cos(float(M_PI) * step / steps));
        for (int i = 0; i < n_weights; i++) {
            float slope = gradients[i] + decay * weights[i];
            velocity[i] = step ? momentum * velocity[i] + slope : slope;
            weights[i] -= rate * (slope + momentum * velocity[i]);
        }
    }
    load(nullptr, n);
    forward(blocks, seen, logits);
}
