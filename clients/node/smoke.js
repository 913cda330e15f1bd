/**
 * Submits one small run, follows it to its end and prints one line about it. Exits with 1 and the reason if it was refused
 * or did not succeed.
 */
import { parseArgs } from 'node:util';
import { Client } from './client.js';
import { SurgeonError } from './refusal.js';
import { runSpec } from './spec.js';

const USAGE = `node smoke.js --coordinator TARGET --model DIR --data TEXT --eval-data TEXT --out DIR [--target-size 0.8]
  TARGET: host:port or unix:///path. Paths are as the workers see them.`;

/** @returns {{ coordinator: string, model: string, data: string, evalData: string, out: string, targetSize: number }} */
function readArguments() {
  const { values } = parseArgs({
    options: {
      coordinator: { type: 'string' },
      model: { type: 'string' },
      data: { type: 'string' },
      'eval-data': { type: 'string' },
      out: { type: 'string' },
      'target-size': { type: 'string', default: '0.8' },
    },
  });
  const { coordinator, model, data, 'eval-data': evalData, out } = values;
  const targetSize = Number(values['target-size']);
  if (!coordinator || !model || !data || !evalData || !out || Number.isNaN(targetSize)) {
    throw new Error('an argument is missing or no number');
  }
  return { coordinator, model, data, evalData, out, targetSize };
}

/** @param {ReturnType<typeof readArguments>} asked */
async function smoke(asked) {
  const client = new Client(asked.coordinator);
  try {
    const info = await client.serverInfo();
    console.error(`coordinator ${info.version}, journal format ${info.journal_format}`);

    const run = await client.submit(runSpec(asked.model, [asked.data], asked.out, {
      eval_data: [asked.evalData],
      target_size: asked.targetSize,
      shots: 4,
      samples: 24,
      seq_len: 128,
      eval_samples: 8,
      multiple_of: 1,
    }));
    console.error(`following ${run.name}`);

    let records = 0;
    let breaks = 0;
    let ended;
    for await (const event of client.watch(run.name, (after, error) => {
      breaks += 1;
      console.error(`connection lost after record ${after}: ${error.message}`);
    })) {
      records += event.event === 'record_json' ? 1 : 0;
      ended = event.ended;
    }
    if (ended?.state !== 'RUN_STATE_SUCCEEDED') {
      throw new Error(`[${ended?.reason_code}] ${run.name} is ${ended?.state}: ${ended?.reason}`);
    }

    const report = await client.report(run.name);
    const left = (100 * report.after.prunable) / report.before.prunable;
    console.log(`${run.name} succeeded: ${records} records over ${breaks + 1} streams, `
      + `${left.toFixed(1)} % of the prunable weights left, held-out perplexity `
      + `${report.evaluation_before?.perplexity.toFixed(3)} -> ${report.evaluation_after?.perplexity.toFixed(3)}`);
  } finally {
    client.close();
  }
}

/** @type {ReturnType<typeof readArguments>} */
let asked;
try {
  asked = readArguments();
} catch (error) {
  console.error(`${error instanceof Error ? error.message : error}\nusage: ${USAGE}`);
  process.exit(64);
}
try {
  await smoke(asked);
} catch (error) {
  const refused = error instanceof SurgeonError;
  console.error(`${refused ? 'refused' : 'failed'}: ${error instanceof Error ? error.message : error}`);
  for (const [field, problem] of Object.entries(refused ? error.violations : {})) {
    console.error(`  ${field}: ${problem}`);
  }
  process.exitCode = 1;
}
