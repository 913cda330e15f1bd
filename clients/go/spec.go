package main

import (
	"math"

	pb "llmsurgeon/v1"
)

// newSpec returns a specification of a run with the command line's defaults for STRUCTURE_COUPLED. Paths are as the
// workers see them. The caller sets a target, and changes what it wants otherwise.
func newSpec(model string, data []string, output string) *pb.RunSpec {
	return &pb.RunSpec{
		Model:           model,
		Data:            data,
		Output:          output,
		TextColumn:      "text",
		Structure:       pb.Structure_STRUCTURE_COUPLED,
		AttentionUnit:   pb.AttentionUnit_ATTENTION_UNIT_KV_GROUP,
		Shape:           pb.Shape_SHAPE_UNIFORM,
		Scoring:         pb.Scoring_SCORING_SEQUENTIAL,
		Update:          pb.Update_UPDATE_CORRELATED,
		Curvature:       pb.Curvature_CURVATURE_KFAC,
		Fisher:          pb.Fisher_FISHER_EMPIRICAL,
		FisherSamples:   1,
		KroneckerRank:   1,
		Shots:           1,
		Rounds:          1,
		Schedule:        pb.Schedule_SCHEDULE_LINEAR,
		MaxRise:         0.05,
		ShotData:        pb.ShotData_SHOT_DATA_NEW,
		Samples:         128,
		Shards:          1,
		SeqLen:          2048,
		EvalSamples:     12,
		DampingScale:    pb.DampingScale_DAMPING_SCALE_DIAGONAL,
		DampingA:        0.1,
		DampingG:        0.01,
		MaxDampedLayers: math.MaxUint32,
		MaxCorrelate:    2000,
		MultipleOf:      64,
		CorrectSteps:    32,
		CorrectRate:     1e-3,
		Dtype:           pb.Dtype_DTYPE_F32,
		BoundaryDtype:   pb.Dtype_DTYPE_F32,
		MemoryBytes:     1 << 30,
		Format:          pb.Format_FORMAT_HF,
		GgufType:        pb.GgufType_GGUF_TYPE_AUTO,
	}
}
