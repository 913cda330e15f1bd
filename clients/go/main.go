// Smoke submits one small run to a coordinator, follows it to its end and prints one line about it. It exits with 1 and the
// reason if it was refused or did not succeed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	pb "llmsurgeon/v1"
)

type arguments struct {
	coordinator, model, data, evalData, out string
	targetSize                              float64
}

func main() {
	var asked arguments
	flag.StringVar(&asked.coordinator, "coordinator", "", "`TARGET`: host:port or unix:///path")
	flag.StringVar(&asked.model, "model", "", "model folder, as the workers see it")
	flag.StringVar(&asked.data, "data", "", "calibration text")
	flag.StringVar(&asked.evalData, "eval-data", "", "held-out text")
	flag.StringVar(&asked.out, "out", "", "folder of the result")
	flag.Float64Var(&asked.targetSize, "target-size", 0.8, "fraction of the prunable weights that stay")
	flag.CommandLine.Init(os.Args[0], flag.ContinueOnError)
	if err := flag.CommandLine.Parse(os.Args[1:]); err != nil {
		os.Exit(64)
	}
	if asked.coordinator == "" || asked.model == "" || asked.data == "" || asked.evalData == "" || asked.out == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "an argument is missing or too much")
		flag.Usage()
		os.Exit(64)
	}
	if err := smoke(context.Background(), asked); err != nil {
		var refused *Refusal
		if !errors.As(err, &refused) {
			fmt.Fprintf(os.Stderr, "failed: %s\n", err)
		} else {
			fmt.Fprintf(os.Stderr, "refused: %s\n", refused)
			for field, problem := range refused.Violations {
				fmt.Fprintf(os.Stderr, "  %s: %s\n", field, problem)
			}
		}
		os.Exit(1)
	}
}

func smoke(ctx context.Context, asked arguments) error {
	client, err := newClient(asked.coordinator)
	if err != nil {
		return err
	}
	defer client.close()

	info, err := client.serverInfo(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "coordinator %s, journal format %d\n", info.Version, info.JournalFormat)

	spec := newSpec(asked.model, []string{asked.data}, asked.out)
	spec.EvalData = []string{asked.evalData}
	spec.Target = &pb.RunSpec_TargetSize{TargetSize: asked.targetSize}
	spec.Shots, spec.Samples, spec.SeqLen, spec.EvalSamples, spec.MultipleOf = 4, 24, 128, 8, 1
	run, err := client.submit(ctx, spec)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "following %s\n", run.Name)

	records, breaks := 0, 0
	ended, err := client.watch(ctx, run.Name, follower{
		record: func(uint64, string) { records++ },
		broken: func(after uint64, err error) {
			breaks++
			fmt.Fprintf(os.Stderr, "connection lost after record %d: %s\n", after, err)
		},
	})
	if err != nil {
		return err
	}
	if ended.State != pb.RunState_RUN_STATE_SUCCEEDED {
		return fmt.Errorf("[%s] %s is %s: %s", ended.ReasonCode, ended.Name, ended.State, ended.Reason)
	}

	report, err := client.report(ctx, run.Name)
	if err != nil {
		return err
	}
	if report.EvaluationBefore == nil || report.EvaluationAfter == nil {
		return fmt.Errorf("the report of %s has no held-out loss", run.Name)
	}
	left := 100 * float64(report.After.Prunable) / float64(report.Before.Prunable)
	fmt.Printf("%s succeeded: %d records over %d streams, %.1f %% of the prunable weights left, held-out perplexity %.3f -> %.3f\n",
		run.Name, records, breaks+1, left, report.EvaluationBefore.Perplexity, report.EvaluationAfter.Perplexity)
	return nil
}
