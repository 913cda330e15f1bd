//! `generate`: the same tokens each time, text on standard output and figures beside it.

use crate::place::Place;
use serde_json::{Value, json};
use std::fs;

const ARGS: [&str; 6] = ["generate", "model", "--prompt", "the cat", "--tokens", "9"];

#[test]
fn a_prompt_is_gone_on_from_the_same_way_each_time() {
    let place = Place::with("llama-gqa");
    place.configure(&[("eos_token_id", Value::Null)]);
    let said = place.run(&ARGS);
    assert!(said.stderr.contains("9 tokens after 7 (as many as asked for)"), "{said:?}");
    assert!(said.stderr.contains("tokens/s without a cache"), "{said:?}");
    let text = said.done();
    let found: Value = serde_json::from_str(&place.run(&[&ARGS[..], &["--json"]].concat()).done()).unwrap();
    assert_eq!(text, format!("{}\n", found["text"].as_str().unwrap()));
    assert_eq!((found["ids"].as_array().unwrap().len(), &found["ended"]), (9, &json!(false)));
    assert_eq!(found["prompt_tokens"], 7);
    assert!(found["tokens_per_second"].as_f64().unwrap() > 0.0);
    let quiet = place.run(&[&ARGS[..], &["--quiet"]].concat());
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.done(), text);

    let second = found["ids"].as_array().unwrap().iter().find(|id| **id != found["ids"][0]).unwrap();
    place.configure(&[("eos_token_id", second.clone())]);
    let ended = place.run(&ARGS);
    assert!(ended.stderr.contains("(the model ended its text)"), "{ended:?}");
    assert!(text.starts_with(ended.done().trim_end_matches('\n')));
}

#[test]
fn a_message_goes_through_the_chat_template() {
    let place = Place::with("llama-gqa");
    let chat = [&ARGS[..], &["--chat", "--json"]].concat();
    place.run(&chat).refused(66, &["tokenizer.json", "no chat template"]);
    let template =
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[A]{% endif %}";
    place.write("model/chat_template.jinja", template);
    let found: Value = serde_json::from_str(&place.run(&chat).done()).unwrap();
    assert_eq!(found["prompt_tokens"], "[user]the cat[A]".len());
}

#[test]
fn a_request_that_cannot_be_is_refused_before_the_weights_are_read() {
    let place = Place::with("opt");
    place.run(&["generate", "model"]).refused(64, &["--prompt <TEXT>"]);
    place.run(&["generate", "model", "--prompt", ""]).refused(64, &["--prompt", "no text to go on from"]);
    place.run(&["generate", "nowhere", "--prompt", "x"]).refused(66, &["nowhere", "not a model folder"]);
    place.run(&["generate", "model", "--prompt", "x", "--tokens", "0"]).refused(64, &["--tokens", "1..=4096"]);
    let long = "x".repeat(60);
    let wanted = ["60 tokens and --tokens asks for 6", "64 in all", "shorten"];
    place.run(&["generate", "model", "--prompt", &long, "--tokens", "6"]).refused(64, &wanted);
    place.run(&["generate", "model", "--prompt", &long, "--tokens", "5"]).done();
    fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    place.run(&["generate", "model", "--prompt", "x"]).refused(66, &["no tokenizer.json"]);
}
