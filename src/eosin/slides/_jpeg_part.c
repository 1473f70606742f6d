/* A rectangle of a baseline JPEG tile, by libjpeg-turbo: rows above it are only entropy-decoded, columns
 * beside it are not transformed, rows below it are not read.
 *
 * Only the plain case is served. Whatever is unusual or damaged is answered by False, and the caller
 * decodes the whole tile, which gives the same pixels or says what is wrong.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#define MAX_ROWS 16
#define CHANNELS 3

typedef struct {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    jmp_buf gave_up;
    unsigned char *rows;
} Decoder;

typedef struct {
    const unsigned char *data;
    size_t size_bytes;
    int is_rgb;
    unsigned int tile_width_px, tile_height_px, denominator;
    unsigned int x_px, y_px, width_px, height_px;
    unsigned char *out;
    Py_ssize_t stride_bytes;
} Job;

static void give_up(j_common_ptr common)
{
    longjmp(((Decoder *)common)->gave_up, 1);
}

static void on_message(j_common_ptr common, int level)
{
    if (level < 0 && common->err->msg_code != JWRN_EXTRANEOUS_DATA)
        give_up(common);
}

static void say_nothing(j_common_ptr common)
{
    (void)common;
}

/* A tile that contradicts its slide's header on colour is the caller's affair. */
static int is_plain(const struct jpeg_decompress_struct *jpeg, const Job *job)
{
    return jpeg->image_width == job->tile_width_px && jpeg->image_height == job->tile_height_px
        && jpeg->num_components == CHANNELS && jpeg->comps_in_scan == CHANNELS && jpeg->data_precision == 8
        && !jpeg->progressive_mode && !jpeg->arith_code
        && (jpeg->jpeg_color_space == JCS_RGB ? job->is_rgb
            : jpeg->jpeg_color_space == JCS_YCbCr && (!job->is_rgb || jpeg->saw_JFIF_marker));
}

/* Upsampling looks at the chroma sample on either side: take in a pixel before and two after the
 * rectangle, so that the cut does not look like the edge of the image. */
static void crop(Decoder *decoder, const Job *job, JDIMENSION *left)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION right = job->x_px + job->width_px + 2, width;

    if (right > jpeg->output_width)
        right = jpeg->output_width;
    *left = job->x_px ? job->x_px - 1 : 0;
    width = right - *left;
    jpeg_crop_scanline(jpeg, left, &width);
}

static void read_rows(Decoder *decoder, const Job *job, JDIMENSION left)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    size_t row_bytes = (size_t)jpeg->output_width * CHANNELS;
    JSAMPROW rows[MAX_ROWS];
    JDIMENSION done = 0, i, num;

    decoder->rows = malloc(row_bytes * MAX_ROWS);
    if (decoder->rows == NULL)
        give_up((j_common_ptr)jpeg);
    for (i = 0; i < MAX_ROWS; i++)
        rows[i] = decoder->rows + i * row_bytes;
    while (done < job->height_px) {
        num = job->height_px - done;
        num = jpeg_read_scanlines(jpeg, rows, num < MAX_ROWS ? num : MAX_ROWS);
        if (num == 0)
            give_up((j_common_ptr)jpeg);
        for (i = 0; i < num; i++, done++)
            memcpy(job->out + (Py_ssize_t)done * job->stride_bytes,
                   rows[i] + (size_t)(job->x_px - left) * CHANNELS, (size_t)job->width_px * CHANNELS);
    }
}

static void decode_rectangle(Decoder *decoder, const Job *job)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    JDIMENSION left;

    jpeg_mem_src(jpeg, job->data, job->size_bytes);
    if (jpeg_read_header(jpeg, TRUE) != JPEG_HEADER_OK)
        give_up((j_common_ptr)jpeg);
    if (job->is_rgb && !jpeg->saw_JFIF_marker && !jpeg->saw_Adobe_marker)
        jpeg->jpeg_color_space = JCS_RGB;
    if (!is_plain(jpeg, job))
        give_up((j_common_ptr)jpeg);
    jpeg->out_color_space = JCS_RGB;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->do_fancy_upsampling = TRUE;
    jpeg->scale_num = 1;
    jpeg->scale_denom = job->denominator;
    jpeg_start_decompress(jpeg);
    if (job->x_px + job->width_px > jpeg->output_width || job->y_px + job->height_px > jpeg->output_height)
        give_up((j_common_ptr)jpeg);
    crop(decoder, job, &left);
    if (job->y_px && jpeg_skip_scanlines(jpeg, job->y_px) != job->y_px)
        give_up((j_common_ptr)jpeg);
    read_rows(decoder, job, left);
}

static int decode(const Job *job)
{
    Decoder decoder;
    volatile int done = 0;

    memset(&decoder, 0, sizeof decoder);
    decoder.jpeg.err = jpeg_std_error(&decoder.errors);
    decoder.errors.error_exit = give_up;
    decoder.errors.emit_message = on_message;
    decoder.errors.output_message = say_nothing;
    if (setjmp(decoder.gave_up) == 0) {
        jpeg_create_decompress(&decoder.jpeg);
        decode_rectangle(&decoder, job);
        done = 1;
    }
    jpeg_destroy_decompress(&decoder.jpeg);
    free(decoder.rows);
    return done;
}

/* The tables' segments (which begin with SOI) and the tile's, as one stream. */
static int join(Job *job, const Py_buffer *tables, const Py_buffer *tile, unsigned char **joined)
{
    const size_t soi_bytes = 2;

    *joined = NULL;
    job->data = tile->buf;
    job->size_bytes = (size_t)tile->len;
    if (job->size_bytes < soi_bytes || job->data[0] != 0xFF || job->data[1] != 0xD8)
        return 0;
    if ((size_t)tables->len <= soi_bytes)
        return 1;
    *joined = malloc((size_t)tables->len + job->size_bytes - soi_bytes);
    if (*joined == NULL)
        return 0;
    memcpy(*joined, tables->buf, (size_t)tables->len);
    memcpy(*joined + tables->len, job->data + soi_bytes, job->size_bytes - soi_bytes);
    job->data = *joined;
    job->size_bytes += (size_t)tables->len - soi_bytes;
    return 1;
}

static int takes_pixels(const Py_buffer *out)
{
    return out->ndim == 3 && out->itemsize == 1 && out->shape[2] == CHANNELS && out->strides[2] == 1
        && out->strides[1] == CHANNELS && out->shape[0] > 0 && out->shape[1] > 0
        && out->shape[0] <= 65535 && out->shape[1] <= 65535;
}

PyDoc_STRVAR(decode_part_doc,
"decode_part(tables, tile, is_rgb, tile_width_px, tile_height_px, denominator, x_px, y_px, out) -> bool\n"
"\n"
"Write the rectangle of out's size at (x_px, y_px) of the tile, scaled by 1 / denominator, into out, a\n"
"uint8 [h, w, 3] view. False: not done, and what is in out means nothing.");

static PyObject *decode_part(PyObject *module, PyObject *arguments)
{
    Py_buffer tables, tile, out;
    PyObject *target;
    Job job;
    unsigned char *joined;
    int done = 0;

    (void)module;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(arguments, "y*y*pIIIIIO", &tables, &tile, &job.is_rgb, &job.tile_width_px,
                          &job.tile_height_px, &job.denominator, &job.x_px, &job.y_px, &target))
        return NULL;
    if (PyObject_GetBuffer(target, &out, PyBUF_STRIDED | PyBUF_WRITABLE) == 0) {
        if (takes_pixels(&out) && job.x_px <= 65535 && job.y_px <= 65535) {
            job.width_px = (unsigned int)out.shape[1];
            job.height_px = (unsigned int)out.shape[0];
            job.out = out.buf;
            job.stride_bytes = out.strides[0];
            Py_BEGIN_ALLOW_THREADS
            if (join(&job, &tables, &tile, &joined))
                done = decode(&job);
            free(joined);
            Py_END_ALLOW_THREADS
        } else
            PyErr_SetString(PyExc_ValueError, "out must be a writable uint8 [h, w, 3] view with whole pixels");
        PyBuffer_Release(&out);
    }
    PyBuffer_Release(&tile);
    PyBuffer_Release(&tables);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(done);
}

static PyMethodDef methods[] = {
    {"decode_part", decode_part, METH_VARARGS, decode_part_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_jpeg_part", "Parts of JPEG tiles by libjpeg-turbo.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__jpeg_part(void)
{
    return PyModule_Create(&definition);
}
