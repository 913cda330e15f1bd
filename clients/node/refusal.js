/**
 * Refusals: a gRPC error with the google.rpc details that come beside it.
 */
import grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';

// The few messages of google.rpc that services send. The full set would be a package of many megabytes.
const rpc = protobuf.parse(`
  syntax = "proto3";
  package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message BadRequest {
    message FieldViolation { string field = 1; string description = 2; }
    repeated FieldViolation field_violations = 1;
  }
`, { keepCase: true }).root;

/** A call that was refused. */
export class SurgeonError extends Error {
  /**
   * @param {grpc.status} code
   * @param {string} reason from the published list; empty if the error comes from the connection
   * @param {string} message
   * @param {Record<string, string>} violations what is wrong, by field
   * @param {unknown} cause
   */
  constructor(code, reason, message, violations, cause) {
    super(`[${reason || grpc.status[code]}] ${message}`, { cause });
    this.name = 'SurgeonError';
    this.code = code;
    this.reason = reason;
    this.violations = violations;
  }
}

/**
 * Returns the refusal that a call's error tells of.
 *
 * @param {grpc.ServiceError} error
 * @returns {SurgeonError}
 */
export function refusal(error) {
  let reason = '';
  /** @type {Record<string, string>} */
  const violations = {};
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  for (const detail of packed instanceof Buffer ? decode('google.rpc.Status', packed).details : []) {
    const type = detail.type_url.slice(detail.type_url.lastIndexOf('/') + 1);
    if (type === 'google.rpc.ErrorInfo') {
      reason = decode(type, detail.value).reason;
    } else if (type === 'google.rpc.BadRequest') {
      for (const found of decode(type, detail.value).field_violations) {
        violations[found.field] = found.description;
      }
    }
  }
  return new SurgeonError(error.code, reason, error.details, violations, error);
}

/**
 * @param {string} type
 * @param {Uint8Array} bytes
 * @returns {any} the message as a plain object
 */
function decode(type, bytes) {
  const message = rpc.lookupType(type);
  return message.toObject(message.decode(bytes), { arrays: true, defaults: true });
}
