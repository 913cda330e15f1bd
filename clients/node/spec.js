/**
 * What a run is asked for: the defaults of the command line.
 */

/**
 * Returns a specification of a run with the command line's defaults for `STRUCTURE_COUPLED`. Paths are as the workers
 * see them.
 *
 * @param {string} model model folder
 * @param {string[]} data calibration files, folders or globs
 * @param {string} output folder of the result
 * @param {Record<string, unknown>} fields fields of `RunSpec` by their names in run.proto; they win over the defaults,
 *   and one of `target_size`, `target_parameters` and `target_bytes` must be among them
 */
export function runSpec(model, data, output, fields) {
  return {
    model,
    data,
    output,
    text_column: 'text',
    structure: 'STRUCTURE_COUPLED',
    attention_unit: 'ATTENTION_UNIT_KV_GROUP',
    shape: 'SHAPE_UNIFORM',
    scoring: 'SCORING_SEQUENTIAL',
    update: 'UPDATE_CORRELATED',
    curvature: 'CURVATURE_KFAC',
    fisher: 'FISHER_EMPIRICAL',
    fisher_samples: 1,
    kronecker_rank: 1,
    shots: 1,
    rounds: 1,
    schedule: 'SCHEDULE_LINEAR',
    max_rise: 0.05,
    shot_data: 'SHOT_DATA_NEW',
    samples: 128,
    shards: 1,
    seq_len: 2048,
    eval_samples: 12,
    damping_scale: 'DAMPING_SCALE_DIAGONAL',
    damping_a: 0.1,
    damping_g: 0.01,
    max_damped_layers: 2 ** 32 - 1,
    max_correlate: 2000,
    multiple_of: 64,
    correct_steps: 32,
    correct_rate: 1e-3,
    dtype: 'DTYPE_F32',
    boundary_dtype: 'DTYPE_F32',
    memory_bytes: 2 ** 30,
    format: 'FORMAT_HF',
    gguf_type: 'GGUF_TYPE_AUTO',
    ...fields,
  };
}
