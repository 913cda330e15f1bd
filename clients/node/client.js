/**
 * A coordinator's client: what python/llm_surgeon/client.py does, as far as one run needs it. There is no generated code:
 * the contract is read from proto/ when the program starts.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { refusal } from './refusal.js';

/** How long a call may take, in milliseconds. */
const CALL_TIMEOUT = 30_000;
/** How long a call or stream that may be repeated is repeated, in milliseconds. */
const RETRY_LIMIT = 300_000;
/** Waits between tries: anything up to these, doubling from the first to the last, in milliseconds. */
const WAITS = { first: 100, last: 10_000 };
const MAX_MESSAGE = 64 * 2 ** 20;

const TRANSIENT = new Set([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED]);

/**
 * The fields that are used here; the others are in run.proto.
 *
 * @typedef {{ name: string, state: string, reason: string, reason_code: string }} Run
 * @typedef {{ sequence: number, event: string, record_json?: string, ended?: Run }} RunEvent
 * @typedef {{ prunable: number, parameters: number, bytes: number }} Sizes
 * @typedef {{ perplexity: number } | null} Evaluation
 * @typedef {{ before: Sizes, after: Sizes, evaluation_before: Evaluation, evaluation_after: Evaluation }} Report
 */

/** Calls that may be repeated are, while the coordinator is away. */
export class Client {
  /**
   * For a Unix socket grpc-js sends the authority `localhost`. gRPC's C core sends the path, which HTTP/2 servers refuse.
   *
   * @param {string} target host:port or unix:///path
   */
  constructor(target) {
    const definition = loadSync('llm_surgeon/v1/coordinator_service.proto', {
      includeDirs: [fileURLToPath(new URL('../../proto', import.meta.url))],
      keepCase: true,
      // Sequence numbers and sizes stay far below 2^53.
      longs: Number,
      enums: String,
      defaults: true,
      oneofs: true,
    });
    const Service = grpc.makeClientConstructor(
      /** @type {any} */ (definition['llm_surgeon.v1.CoordinatorService']), 'CoordinatorService');
    /** @type {any} the methods come from the contract, so their types are not known here */
    this.stub = new Service(target, grpc.credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAX_MESSAGE,
      'grpc.keepalive_time_ms': 20_000,
      // A coordinator that comes back is found as soon as the next try asks for it.
      'grpc.initial_reconnect_backoff_ms': WAITS.first,
      'grpc.max_reconnect_backoff_ms': WAITS.last,
    });
  }

  /** Ends the connection; runs go on. */
  close() {
    this.stub.close();
  }

  /**
   * Returns the versions of the coordinator.
   *
   * @returns {Promise<{ version: string, journal_format: number }>}
   */
  serverInfo() {
    return this.#call('GetServerInfo', {});
  }

  /**
   * Starts a run, or continues the one that the same specification started before.
   *
   * @param {object} spec
   * @returns {Promise<Run>}
   */
  async submit(spec) {
    // One id for all tries: a try that was answered on a lost connection gets the same answer again.
    return (await this.#call('CreateRun', { request_id: `node-${randomUUID()}`, spec })).run;
  }

  /**
   * Yields a run's journal from a record on, and what happens then, until it ends or pauses. A stream that breaks is opened
   * again where it broke: no record comes twice, none is missed.
   *
   * @param {string} name
   * @param {(after: number, error: Error) => void} broken told of each break: the last record that came, and why
   * @returns {AsyncGenerator<RunEvent, void>}
   */
  async *watch(name, broken, fromSequence = 1) {
    let following = fromSequence;
    let waits = new Waits();
    for (;;) {
      const stream = this.stub.WatchRun({ name, from_sequence: following });
      try {
        for await (const { event } of stream) {
          waits = new Waits();
          if (event.event === 'record_json') {
            if (event.sequence !== following) {
              throw new Error(`record ${following} of ${name} was expected, ${event.sequence} came`);
            }
            following += 1;
          }
          yield event;
          if (event.event === 'ended') {
            return;
          }
        }
        // A coordinator that stops may close the stream in good order before the run has ended.
        throw Object.assign(new Error('the stream ended before the run'), { code: grpc.status.UNAVAILABLE });
      } catch (error) {
        await waits.after(error);
        broken(following - 1, /** @type {Error} */ (error));
      } finally {
        stream.cancel();
      }
    }
  }

  /**
   * Returns the content of pruning_report.json, as far as the run has come.
   *
   * @param {string} name
   * @returns {Promise<Report>}
   */
  async report(name) {
    return JSON.parse((await this.#call('GetRunReport', { name })).report_json);
  }

  /**
   * @param {string} method
   * @param {object} request
   * @returns {Promise<any>}
   */
  async #call(method, request) {
    const waits = new Waits();
    for (;;) {
      try {
        return await new Promise((resolve, reject) => {
          const options = { deadline: Date.now() + CALL_TIMEOUT };
          /** @type {grpc.requestCallback<object>} */
          const answered = (error, answer) => (error ? reject(error) : resolve(answer));
          this.stub[method](request, options, answered);
        });
      } catch (error) {
        await waits.after(error);
      }
    }
  }
}

/** Full jitter, doubling, and a limit in time. */
class Waits {
  #ends = performance.now() + RETRY_LIMIT;
  /** @type {number} */
  #ceiling = WAITS.first;

  /**
   * Waits before the next try, or throws what stays.
   *
   * @param {any} error
   */
  async after(error) {
    if (!(error instanceof Error) || !('code' in error) || typeof error.code !== 'number') {
      throw error; // not from gRPC
    }
    const wait = Math.random() * this.#ceiling;
    if (!TRANSIENT.has(error.code) || performance.now() + wait > this.#ends) {
      throw refusal(/** @type {grpc.ServiceError} */ (error));
    }
    await sleep(wait);
    this.#ceiling = Math.min(2 * this.#ceiling, WAITS.last);
  }
}
