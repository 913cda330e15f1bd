package main

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Refusal is a call that was refused, with the google.rpc details that came beside the error.
type Refusal struct {
	Code codes.Code
	// Reason is from the published list; empty if the error comes from the connection.
	Reason  string
	Message string
	// Violations say what is wrong, by field.
	Violations map[string]string
}

func (r *Refusal) Error() string {
	if r.Reason == "" {
		return fmt.Sprintf("[%s] %s", r.Code, r.Message)
	}
	return fmt.Sprintf("[%s] %s", r.Reason, r.Message)
}

// refusal returns the refusal that a call's error tells of.
func refusal(err error) error {
	told := status.Convert(err)
	refused := &Refusal{Code: told.Code(), Message: told.Message(), Violations: map[string]string{}}
	for _, detail := range told.Details() {
		switch found := detail.(type) {
		case *errdetails.ErrorInfo:
			refused.Reason = found.Reason
		case *errdetails.BadRequest:
			for _, violation := range found.FieldViolations {
				refused.Violations[violation.Field] = violation.Description
			}
		}
	}
	return refused
}
