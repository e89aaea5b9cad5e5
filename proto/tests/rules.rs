//! The rules that the .proto files keep, read from the descriptors that the server hands out.

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const PACKAGE: &str = "rollcall.v1";

// Field numbers of descriptor.proto, of which a source location's path is made.
const FILE_MESSAGES: i32 = 4;
const FILE_ENUMS: i32 = 5;
const FILE_SERVICES: i32 = 6;
const MESSAGE_FIELDS: i32 = 2;
const MESSAGE_NESTED: i32 = 3;
const MESSAGE_ENUMS: i32 = 4;
const MESSAGE_ONEOFS: i32 = 8;
const ENUM_VALUES: i32 = 2;
const SERVICE_METHODS: i32 = 2;

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(rollcall_proto::FILE_DESCRIPTOR_SET).expect("a descriptor set")
}

fn own_files() -> Vec<FileDescriptorProto> {
    let files = descriptors().file;
    files.into_iter().filter(|file| file.package() == PACKAGE).collect()
}

#[test]
fn registry_is_the_only_service_and_has_ten_calls() {
    let files = own_files();
    let services: Vec<_> = files.iter().flat_map(|file| &file.service).collect();
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].name(), "Registry");
    let calls: Vec<_> =
        services[0].method.iter().map(|call| (call.name(), call.client_streaming(), call.server_streaming())).collect();
    assert_eq!(
        calls,
        [
            ("Register", true, true),
            ("Get", false, false),
            ("Watch", false, true),
            ("AcquireLock", false, true),
            ("ReleaseLock", false, false),
            ("DescribeLock", false, false),
            ("Put", false, false),
            ("Delete", false, false),
            ("Evict", false, false),
            ("Status", false, false),
        ]
    );
}

#[test]
fn every_import_is_in_the_descriptor_set() {
    let files = descriptors().file;
    let names: Vec<_> = files.iter().map(FileDescriptorProto::name).collect();
    for import in files.iter().flat_map(|file| &file.dependency) {
        assert!(names.contains(&import.as_str()), "{import} is missing from {names:?}");
    }
    assert!(names.contains(&"google/protobuf/struct.proto"));
}

#[test]
fn everything_in_the_api_has_a_comment() {
    let mut silent = Vec::new();
    let mut seen = 0;
    for file in own_files() {
        let comments = comments(&file);
        for (path, name) in elements(&file) {
            seen += 1;
            if comments.get(&path).is_none_or(|comment| comment.trim().is_empty()) {
                silent.push(format!("{}: {name}", file.name()));
            }
        }
    }
    assert!(seen > 200, "only {seen} elements found: the walk is broken");
    assert!(silent.is_empty(), "without a comment: {silent:#?}");
}

/// The leading comments of a file, by the path of the element below each.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let info = file.source_code_info.as_ref().expect("built with source info");
    info.location.iter().map(|location| (location.path.clone(), location.leading_comments().to_owned())).collect()
}

/// Every element of a file that a user of the stubs can name, with its path.
fn elements(file: &FileDescriptorProto) -> Vec<(Vec<i32>, String)> {
    let mut found = Vec::new();
    for (index, message) in indexed(&file.message_type) {
        message_elements(&[FILE_MESSAGES, index], PACKAGE, message, &mut found);
    }
    for (index, r#enum) in indexed(&file.enum_type) {
        enum_elements(&[FILE_ENUMS, index], PACKAGE, r#enum, &mut found);
    }
    for (index, service) in indexed(&file.service) {
        let path = [FILE_SERVICES, index];
        found.push((path.to_vec(), service.name().to_owned()));
        for (index, call) in indexed(&service.method) {
            let name = format!("{}.{}", service.name(), call.name());
            found.push(([&path[..], &[SERVICE_METHODS, index]].concat(), name));
        }
    }
    found
}

fn message_elements(path: &[i32], scope: &str, message: &DescriptorProto, found: &mut Vec<(Vec<i32>, String)>) {
    if message.options.as_ref().is_some_and(|options| options.map_entry()) {
        return; // The entry of a map field, which nobody wrote.
    }
    let scope = format!("{scope}.{}", message.name());
    found.push((path.to_vec(), scope.clone()));
    for (index, field) in indexed(&message.field) {
        let name = format!("{scope}.{}", field.name());
        found.push(([path, &[MESSAGE_FIELDS, index]].concat(), name));
    }
    for (index, oneof) in indexed(&message.oneof_decl) {
        // An `optional` field comes with a oneof of its own, named with an underscore.
        if !oneof.name().starts_with('_') {
            let name = format!("{scope}.{}", oneof.name());
            found.push(([path, &[MESSAGE_ONEOFS, index]].concat(), name));
        }
    }
    for (index, nested) in indexed(&message.nested_type) {
        message_elements(&[path, &[MESSAGE_NESTED, index]].concat(), &scope, nested, found);
    }
    for (index, r#enum) in indexed(&message.enum_type) {
        enum_elements(&[path, &[MESSAGE_ENUMS, index]].concat(), &scope, r#enum, found);
    }
}

fn enum_elements(path: &[i32], scope: &str, r#enum: &EnumDescriptorProto, found: &mut Vec<(Vec<i32>, String)>) {
    let scope = format!("{scope}.{}", r#enum.name());
    found.push((path.to_vec(), scope.clone()));
    for (index, value) in indexed(&r#enum.value) {
        let name = format!("{scope}.{}", value.name());
        found.push(([path, &[ENUM_VALUES, index]].concat(), name));
    }
}

fn indexed<T>(items: &[T]) -> impl Iterator<Item = (i32, &T)> {
    (0..).zip(items)
}
