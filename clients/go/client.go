package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "llmsurgeon/v1"
)

const (
	// callTimeout is how long a call may take.
	callTimeout = 30 * time.Second
	// retryLimit is how long a call or stream that may be repeated is repeated.
	retryLimit = 5 * time.Minute
	// Waits between tries are anything up to these, doubling from the first to the last.
	firstWait, lastWait = 100 * time.Millisecond, 10 * time.Second
	maxMessage          = 64 << 20
)

// Client is a coordinator's client: what python/llm_surgeon/client.py does, as far as one run needs it. Calls that may be
// repeated are, while the coordinator is away.
type Client struct {
	connection *grpc.ClientConn
	stub       pb.CoordinatorServiceClient
}

// Report is the part of pruning_report.json that is used here.
type Report struct {
	Before           Sizes       `json:"before"`
	After            Sizes       `json:"after"`
	EvaluationBefore *Evaluation `json:"evaluation_before"`
	EvaluationAfter  *Evaluation `json:"evaluation_after"`
}

// Sizes is a model's size.
type Sizes struct {
	Prunable uint64 `json:"prunable"`
}

// Evaluation is what held-out text says of a model.
type Evaluation struct {
	Perplexity float64 `json:"perplexity"`
}

// newClient returns a client of the coordinator at host:port or unix:///path. For a Unix socket gRPC for Go sends the
// authority `localhost`. gRPC's C core sends the path, which HTTP/2 servers refuse.
func newClient(target string) (*Client, error) {
	reconnect := backoff.DefaultConfig
	// A coordinator that comes back is found as soon as the next try asks for it.
	reconnect.BaseDelay, reconnect.MaxDelay = firstWait, lastWait
	connection, err := grpc.Dial(target,
		grpc.WithInsecure(), // the gRPC of Debian 12 does not have insecure.NewCredentials yet
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: lastWait}),
	)
	if err != nil {
		return nil, err
	}
	return &Client{connection, pb.NewCoordinatorServiceClient(connection)}, nil
}

// close ends the connection; runs go on.
func (c *Client) close() error {
	return c.connection.Close()
}

// serverInfo returns the versions of the coordinator.
func (c *Client) serverInfo(ctx context.Context) (*pb.GetServerInfoResponse, error) {
	var answer *pb.GetServerInfoResponse
	err := repeat(ctx, func(ctx context.Context) (err error) {
		answer, err = c.stub.GetServerInfo(ctx, &pb.GetServerInfoRequest{})
		return err
	})
	return answer, err
}

// submit starts a run, or continues the one that the same specification started before.
func (c *Client) submit(ctx context.Context, spec *pb.RunSpec) (*pb.Run, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	// One id for all tries: a try that was answered on a lost connection gets the same answer again.
	request := &pb.CreateRunRequest{RequestId: fmt.Sprintf("go-%x", id), Spec: spec}
	var answer *pb.CreateRunResponse
	err := repeat(ctx, func(ctx context.Context) (err error) {
		answer, err = c.stub.CreateRun(ctx, request)
		return err
	})
	return answer.GetRun(), err
}

// follower takes what a followed run tells.
type follower struct {
	// record takes each journal record, once and in order.
	record func(sequence uint64, json string)
	// broken is told of each lost connection: the last record that came, and why.
	broken func(after uint64, err error)
}

// watch follows a run from its first record until it ends or pauses, and returns how it ended. A stream that breaks is
// opened again where it broke: no record comes twice, none is missed.
func (c *Client) watch(ctx context.Context, name string, to follower) (*pb.Run, error) {
	following := uint64(1)
	waits := newWaits()
	for {
		ended, err := c.watchOnce(ctx, name, &following, &waits, to)
		if ended != nil {
			return ended, nil
		}
		if errors.Is(err, io.EOF) {
			// A coordinator that stops may close the stream in good order before the run has ended.
			err = status.Error(codes.Unavailable, "the stream ended before the run")
		}
		if stays := waits.after(ctx, err); stays != nil {
			return nil, stays
		}
		to.broken(following-1, err)
	}
}

// watchOnce reads one stream. It moves following past each record that came, and starts waits anew with each sign of life.
func (c *Client) watchOnce(ctx context.Context, name string, following *uint64, waits *waits, to follower) (*pb.Run, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.stub.WatchRun(ctx, &pb.WatchRunRequest{Name: name, FromSequence: *following})
	if err != nil {
		return nil, err
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		*waits = newWaits()
		event := response.GetEvent()
		switch told := event.GetEvent().(type) {
		case *pb.RunEvent_RecordJson:
			if event.Sequence != *following {
				return nil, status.Errorf(codes.DataLoss, "record %d of %s was expected, %d came", *following, name, event.Sequence)
			}
			*following++
			to.record(event.Sequence, told.RecordJson)
		case *pb.RunEvent_Ended:
			return told.Ended, nil
		}
	}
}

// report returns the content of pruning_report.json, as far as the run has come.
func (c *Client) report(ctx context.Context, name string) (*Report, error) {
	var answer *pb.GetRunReportResponse
	err := repeat(ctx, func(ctx context.Context) (err error) {
		answer, err = c.stub.GetRunReport(ctx, &pb.GetRunReportRequest{Name: name})
		return err
	})
	if err != nil {
		return nil, err
	}
	report := new(Report)
	return report, json.Unmarshal([]byte(answer.ReportJson), report)
}

// repeat calls until there is an answer, or a refusal that stays.
func repeat(ctx context.Context, call func(context.Context) error) error {
	waits := newWaits()
	for {
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		err := call(limited)
		cancel()
		if err == nil {
			return nil
		}
		if stays := waits.after(ctx, err); stays != nil {
			return stays
		}
	}
}

// waits has full jitter, doubles, and has a limit in time.
type waits struct {
	ends    time.Time
	ceiling time.Duration
}

func newWaits() waits {
	return waits{ends: time.Now().Add(retryLimit), ceiling: firstWait}
}

// after waits before the next try, or returns what stays.
func (w *waits) after(ctx context.Context, err error) error {
	wait := time.Duration(mathrand.Int63n(int64(w.ceiling)))
	code := status.Code(err)
	if (code != codes.Unavailable && code != codes.DeadlineExceeded) || time.Now().Add(wait).After(w.ends) {
		return refusal(err)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
	}
	w.ceiling *= 2
	if w.ceiling > lastWait {
		w.ceiling = lastWait
	}
	return nil
}
